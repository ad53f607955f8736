"""Images that leave an attack as soon as they are broken: fewer passes, the same verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torchattacks
from tasks import Task, trained
from torch import Tensor

from attacks import evaluate
from attacks.components.square import Square
from attacks.attacked_model import AttackedModel, EarlyExit, perturbation_norm


@pytest.fixture(scope="module")
def task() -> Task:
    return trained(10)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaves early, and every proposal is passed."""

    @contextmanager
    def early_exit(self: AttackedModel, x: Tensor, y: Tensor, reach: float, norm: str) -> Iterator[EarlyExit]:
        yield EarlyExit(x, y, reach, norm)

    monkeypatch.setattr(AttackedModel, "early_exit", early_exit)
    monkeypatch.setattr("attacks.build.Square", torchattacks.Square)
    monkeypatch.setattr(
        "attacks.build.FABT",
        lambda net, _, **options: torchattacks.FAB(net, **options, multi_targeted=True),
    )


CASES = [("apgd_ce", "Linf", 0.12), ("apgd_t", "Linf", 0.12), ("fab_t", "Linf", 0.12), ("apgd_ce", "L2", 0.6),
         ("apgd_t", "L2", 0.6), ("fab_t", "L2", 0.6), ("aa", "Linf", 0.3), ("square", "Linf", 0.12)]  # fmt: skip


@pytest.mark.parametrize(("name", "norm", "eps"), CASES)
def test_fewer_passes_same_verdicts(
    name: str, norm: str, eps: float, task: Task, request: pytest.FixtureRequest
) -> None:
    early = evaluate(*task, (name,), eps=eps, norm=norm, probes=0)
    request.getfixturevalue("never")
    late = evaluate(*task, (name,), eps=eps, norm=norm, probes=0)
    assert torch.equal(early.robust[name], late.robust[name])
    assert early.cost[name].forwards < 0.98 * late.cost[name].forwards
    assert not early.robust[name].all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12)])
@pytest.mark.parametrize("count", [1, 3, 90, 300])  # 300: most of the time one query at a time
def test_queries_tried_together_are_the_same_search(shape: tuple[int, ...], count: int) -> None:
    """In double precision, image by image; some are broken on the way and some are not."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(shape[0], 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5)
    ).double()
    x = torch.rand(count, *shape, dtype=torch.float64)
    y = net(x).argmax(dim=1)
    options = {"norm": "Linf", "eps": 0.02, "n_queries": 700, "seed": 3, "resc_schedule": False}
    with torch.no_grad():
        found, want = (kind(net, **options)(x, y) for kind in (Square, torchattacks.Square))
        assert count == 1 or 0 < (net(want).argmax(dim=1) == y).float().mean() < 1
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def test_a_broken_image_is_not_passed_on_and_the_others_are_not_moved(task: Task) -> None:
    net, x, y = task
    right = net(x).argmax(dim=1) == y
    x, y = x[right][:6], y[right][:6]
    wrong = y.clone()
    wrong[2] = (y[2] + 1) % 10  # "misclassified" from the start
    view = AttackedModel(net, x)
    with view.early_exit(x, wrong, 0.1, "Linf") as early:
        first = view(x)
        assert early.robust.tolist() == [True, True, False, True, True, True]
        before = view.forwards
        moved = (x + 0.01).requires_grad_()
        second = view(moved)
        assert view.forwards - before == 5
        assert torch.equal(second[2], first[2])
        (gradient,) = torch.autograd.grad(second.sum(), moved)
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).tolist() == early.robust.tolist()
    torch.testing.assert_close(second[[0, 1, 3, 4, 5]], view(x + 0.01)[[0, 1, 3, 4, 5]])
    assert torch.equal(early.merge(x + 1)[2], x[2])
    assert torch.equal(early.merge(x + 1)[3], x[3] + 1)


def test_outside_the_ball_nothing_leaves(task: Task) -> None:
    net, x, _ = task
    view, wrong = AttackedModel(net, x), (net(x).argmax(dim=1) + 1) % 10
    with view.early_exit(x, wrong, 0.05, "Linf") as early:
        view((x + 0.06).clamp(0, 1))
        assert early.robust[size((x + 0.06).clamp(0, 1) - x, "Linf") > 0.05].all()
        view(x)
    assert not early.robust.any()  # and the block ended there


def test_only_what_the_unfolded_model_confirms_leaves(task: Task) -> None:
    net, x, _ = task
    view = AttackedModel(net, x)
    view.network = torch.nn.Sequential(view.network, torch.nn.Softmin(dim=1))  # an acceleration gone wrong
    with view.early_exit(x, net(x).argmax(dim=1), 0.1, "Linf") as early:
        assert (view(x).argmax(dim=1) != net(x).argmax(dim=1)).all()
        assert early.robust.all()


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_targets_tried_together_fill_a_batch_and_no_more(
    batch_size: int, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    forward = AttackedModel.forward
    monkeypatch.setattr(
        AttackedModel, "forward", lambda self, x: (passed.append(len(x)), forward(self, x))[1]
    )
    found = evaluate(*task, ("fab_t",), eps=0.12, probes=0, batch_size=batch_size)
    assert batch_size / 2 < max(passed) <= batch_size
    whole = evaluate(*task, ("fab_t",), eps=0.12, probes=0)
    assert torch.equal(found.robust["fab_t"], whole.robust["fab_t"])
    assert 0 < int(found.robust["fab_t"].sum()) < int(found.clean.sum())
