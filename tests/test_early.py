"""Images that an attack drops as soon as they are fooled: fewer passes, the same verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torchattacks
from tasks import Task, trained
from torch import Tensor

from attacks import evaluate
from attacks.attacked_model import AttackedModel, EarlyExit, perturbation_norm
from attacks.components.square import Square


@pytest.fixture(scope="module")
def task() -> Task:
    return trained(10)


@pytest.fixture
def no_early_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is dropped, and Square passes every query."""

    @contextmanager
    def early_exit(
        self: AttackedModel, x: Tensor, y: Tensor, radius: float, norm: str
    ) -> Iterator[EarlyExit]:
        yield EarlyExit(x, y, radius, norm)

    monkeypatch.setattr(AttackedModel, "early_exit", early_exit)
    monkeypatch.setattr("attacks.build.Square", torchattacks.Square)
    monkeypatch.setattr(
        "attacks.build.FABT",
        lambda net, _, **options: torchattacks.FAB(net, **options, multi_targeted=True),
    )


CASES = [
    ("apgd_ce", "Linf", 0.12),
    ("apgd_t", "Linf", 0.12),
    ("fab_t", "Linf", 0.12),
    ("apgd_ce", "L2", 0.6),
    ("apgd_t", "L2", 0.6),
    ("fab_t", "L2", 0.6),
    ("aa", "Linf", 0.3),
    ("square", "Linf", 0.12),
]


@pytest.mark.parametrize(("name", "norm", "eps"), CASES)
def test_fewer_passes_same_verdicts(
    name: str, norm: str, eps: float, task: Task, request: pytest.FixtureRequest
) -> None:
    early = evaluate(*task, (name,), eps=eps, norm=norm, probes=0)
    request.getfixturevalue("no_early_exit")
    late = evaluate(*task, (name,), eps=eps, norm=norm, probes=0)
    assert torch.equal(early.robust[name], late.robust[name])
    assert early.cost[name].forwards < 0.98 * late.cost[name].forwards
    assert not early.robust[name].all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12)])
# With 300 images most passes hold one query.
@pytest.mark.parametrize("count", [1, 3, 90, 300])
def test_queries_tried_together_are_the_same_search(shape: tuple[int, ...], count: int) -> None:
    """Compare in double precision, image by image; some are fooled and some are not."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(shape[0], 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5)
    ).double()
    x = torch.rand(count, *shape, dtype=torch.float64)
    y = net(x).argmax(dim=1)
    options = {"norm": "Linf", "eps": 0.02, "n_queries": 700, "seed": 3, "resc_schedule": False}
    with torch.no_grad():
        batched, expected = (kind(net, **options)(x, y) for kind in (Square, torchattacks.Square))
        assert count == 1 or 0 < (net(expected).argmax(dim=1) == y).float().mean() < 1
    torch.testing.assert_close(batched, expected, rtol=0, atol=1e-12)


def test_a_fooled_image_is_dropped_and_the_others_do_not_move(task: Task) -> None:
    net, x, y = task
    correct = net(x).argmax(dim=1) == y
    x, y = x[correct][:6], y[correct][:6]
    # The third image is misclassified from the start.
    wrong = y.clone()
    wrong[2] = (y[2] + 1) % 10
    model = AttackedModel(net, x)
    with model.early_exit(x, wrong, 0.1, "Linf") as early:
        first = model(x)
        assert early.robust.tolist() == [True, True, False, True, True, True]
        before = model.forwards
        moved = (x + 0.01).requires_grad_()
        second = model(moved)
        assert model.forwards - before == 5
        assert torch.equal(second[2], first[2])
        (gradient,) = torch.autograd.grad(second.sum(), moved)
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).tolist() == early.robust.tolist()
    torch.testing.assert_close(second[[0, 1, 3, 4, 5]], model(x + 0.01)[[0, 1, 3, 4, 5]])
    assert torch.equal(early.merge(x + 1)[2], x[2])
    assert torch.equal(early.merge(x + 1)[3], x[3] + 1)


def test_no_image_is_dropped_outside_the_ball(task: Task) -> None:
    net, x, _ = task
    model, wrong = AttackedModel(net, x), (net(x).argmax(dim=1) + 1) % 10
    with model.early_exit(x, wrong, 0.05, "Linf") as early:
        model((x + 0.06).clamp(0, 1))
        assert early.robust[perturbation_norm((x + 0.06).clamp(0, 1) - x, "Linf") > 0.05].all()
        model(x)
    # The block ended there.
    assert not early.robust.any()


def test_only_images_that_fool_the_reference_model_are_dropped(task: Task) -> None:
    net, x, _ = task
    model = AttackedModel(net, x)
    # An acceleration gone wrong.
    model.network = torch.nn.Sequential(model.network, torch.nn.Softmin(dim=1))
    with model.early_exit(x, net(x).argmax(dim=1), 0.1, "Linf") as early:
        assert (model(x).argmax(dim=1) != net(x).argmax(dim=1)).all()
        assert early.robust.all()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_targets_tried_together_fill_a_batch_and_no_more(
    batch_size: int, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = AttackedModel.forward

    def forward_noted(self: AttackedModel, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(AttackedModel, "forward", forward_noted)
    result = evaluate(*task, ("fab_t",), eps=0.12, probes=0, batch_size=batch_size)
    assert batch_size / 2 < max(sizes) <= batch_size
    complete = evaluate(*task, ("fab_t",), eps=0.12, probes=0)
    assert torch.equal(result.robust["fab_t"], complete.robust["fab_t"])
    assert 0 < int(result.robust["fab_t"].sum()) < int(result.clean.sum())
