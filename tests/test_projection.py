"""FAB's projection against torchattacks' own and against a linear programme."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor
from torchattacks.attacks import fab

from attacks.components.fab import projection_linf, without_sort


def draw_planes(
    rows: int, pixels: int, scale: float, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return points with pixels at 0 and 1, weights with zeros, planes in and out of reach."""
    draw = torch.Generator().manual_seed(seed)
    points = (1.4 * torch.rand(rows, pixels, generator=draw) - 0.2).clamp(0, 1)
    w = torch.randn(rows, pixels, generator=draw) * torch.rand(rows, pixels, generator=draw) ** 4
    w[:, ::7] = 0
    offset = torch.rand(rows, generator=draw) - 0.5
    return points, w, (w * points).sum(dim=1) + scale * offset * w.abs().sum(dim=1)


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("pixels", [3, 64, 3072])
def test_projection_equals_torchattacks(pixels: int, scale: float) -> None:
    points, w, b = draw_planes(100, pixels, scale)
    change, expected = projection_linf(points, w, b), fab.projection_linf(points, w, b)
    torch.testing.assert_close(change, expected, rtol=0, atol=2e-6)
    assert ((points + change) >= -1e-6).all()
    assert ((points + change) <= 1 + 1e-6).all()


def test_projection_is_the_optimum_of_the_linear_programme() -> None:
    points, w, b = (tensor.double() for tensor in draw_planes(20, 12, 0.6))
    changes, reachable = projection_linf(points, w, b), 0
    for t, weight, level, change in zip(points, w, b, changes, strict=True):
        rows = [
            [*sign * torch.eye(12).double()[i].numpy(), -1] for i in range(12) for sign in (1, -1)
        ]
        bounds = [*((-float(p), 1 - float(p)) for p in t), (0, None)]
        best = linprog(
            [0] * 12 + [1],
            rows,
            [0] * 24,
            [[*weight.numpy(), 0]],
            [float(level - weight @ t)],
            bounds=bounds,
        )
        if best.success:
            reachable += 1
            assert float(weight @ (t + change)) == pytest.approx(float(level), abs=1e-9)
            assert float(change.abs().max()) == pytest.approx(best.fun, abs=1e-9)
    assert reachable > 5


def test_a_plane_without_direction_moves_nothing() -> None:
    points = torch.rand(3, 5)
    assert projection_linf(points, torch.zeros(3, 5), torch.tensor([0.0, 1.0, -1.0])).eq(0).all()


def test_torchattacks_is_restored() -> None:
    original = fab.projection_linf
    with without_sort():
        assert fab.projection_linf is projection_linf
    with pytest.raises(ZeroDivisionError), without_sort():
        1 / 0  # noqa: B018
    assert fab.projection_linf is original
