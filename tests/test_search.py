"""The search for devices, on a CPU: official verdicts, full passes, and no wait in a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tasks import Task, trained
from test_official import is_telling, official_verdicts, short
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchattacks.attacks import fab

from attacks import evaluate
from attacks.attacked_model import AttackedModel
from attacks.build import Settings, choose_search
from attacks.catalog import Attack
from attacks.components.fab import projection_l2, projection_linf
from attacks.isolation import isolated_state
from attacks.search import run
from attacks.search.fab import ROUNDS
from attacks.search.passes import Passes
from attacks.search.run import search
from attacks.search.slots import Slots
from attacks.verdict_file import ForeignVerdictsError
from bench.datasets import augmentation, loading

__all__ = ["short"]
SIZE = 128
COMPONENTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "pgd", "cw")


@pytest.fixture(scope="module")
def task() -> Task:
    return trained(10)


@pytest.fixture(scope="module")
def thousand(task: Task) -> Task:
    """A thousand correctly classified images, of which about half stand at eps 0.12."""
    net = task[0]
    digits = loading.load_data("digits", "")
    x = augmentation.to_float(torch.cat([digits.train.x, digits.test.x]))
    y = torch.cat([digits.train.y, digits.test.y])
    with torch.no_grad():
        right = net(x).argmax(dim=1) == y
    return net, x[right][:1000], y[right][:1000]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.12), ("L2", 0.6)])
@pytest.mark.parametrize("batch_size", [250, 10])
def test_autoattack_gives_the_official_verdicts(
    task: Task, norm: str, eps: float, batch_size: int
) -> None:
    expected = official_verdicts(task, eps, norm, batch_size)
    options: dict[str, Any] = {"eps": eps, "norm": norm, "batch_size": batch_size, "probes": 0}
    verdict = evaluate(*task, ("aa",), search="device", **options).robust["aa"]
    assert verdict.tolist() == expected.tolist()
    assert is_telling(expected)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_keep_the_losses_that_are_defined(classes: int) -> None:
    task = trained(classes)
    exact, device = (
        evaluate(*task, ("aa",), eps=0.12, probes=0, search=kind) for kind in ("exact", "device")
    )
    assert device.robust["aa"].tolist() == exact.robust["aa"].tolist()
    assert device.cost["aa"].fooled == exact.cost["aa"].fooled


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.12), ("L2", 0.6)])
def test_the_full_budgets_on_many_images(thousand: Task, norm: str, eps: float) -> None:
    net, x, y = (thousand[0], *(part[:300] for part in thousand[1:]))
    names = ("aa", "pgd20", "pgd100", *(("cw_inf",) if norm == "Linf" else ()))
    exact, device = (
        evaluate(net, x, y, names, eps=eps, norm=norm, probes=0, search=kind)
        for kind in ("exact", "device")
    )
    for name in names:
        assert device.robust[name].tolist() == exact.robust[name].tolist(), name
    assert 0.3 < exact.accuracy()["aa"] < 0.7
    ratio = device.cost["aa"].forwards / exact.cost["aa"].forwards
    assert ratio < 1.06
    print(f"\n{norm}: {ratio:.3f} of the exact search's forward passes")


class Waits(TorchDispatchMode):
    """Count what makes the host wait for a device."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in self.NAMES or by_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads(waits: Waits) -> Iterator[None]:
    """Count tensors that are read as lists or moved to the host, too."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "cpu", "numpy"):
            original = getattr(Tensor, name)

            def counted(tensor: Tensor, *args: Any, original: Any = original, **options: Any) -> Any:
                waits.counts[original.__name__] += 1
                return original(tensor, *args, **options)

            patch.setattr(Tensor, name, counted)
        with waits:
            yield


@dataclass
class Observed:
    """What a search did: images that are searched in each pass, while jobs wait for slots."""

    in_steps: Waits = field(default_factory=Waits)
    outside: Waits = field(default_factory=Waits)
    looks: int = 0
    fills: list[float] = field(default_factory=list)
    jobs_wait: bool = True


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Observed:
    """Passes of SIZE images, observed."""
    seen, fill, look = Observed(), Slots._fill, Slots._look

    def observed_fill(slots: Slots) -> bool:
        filled = fill(slots)
        seen.jobs_wait &= all(slots.jobs) and len(slots.jobs) == SIZE
        return filled

    def observed_step(passes: Passes, step: Callable[..., Any], state: dict[str, Tensor]) -> None:
        if seen.jobs_wait:
            searched = ~state["done"] & (state["margin"] == -torch.inf)
            seen.fills.append(float(searched.float().mean()))
        with host_reads(seen.in_steps):
            state |= step(state)

    def observed_look(slots: Slots) -> None:
        seen.looks += 1
        with host_reads(seen.outside):
            look(slots)

    monkeypatch.setattr(run, "CPU_SIZE", SIZE)
    monkeypatch.setattr(Slots, "_fill", observed_fill)
    monkeypatch.setattr(Slots, "_look", observed_look)
    monkeypatch.setattr(Passes, "run_step", observed_step)
    return seen


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("kind", COMPONENTS)
def test_passes_are_full_and_no_step_waits(
    kind: Any, norm: str, thousand: Task, observed: Observed
) -> None:
    net, x, y = thousand
    steps = {"square": 500, "pgd": 20, "cw": 30}.get(kind, 100)
    settings = Settings(0.12 if norm == "Linf" else 0.6, norm, 0, 100, 10)
    with isolated_state(0):
        result = search(Attack(kind, steps), AttackedModel(net, x[:2]), x, y, settings)
    assert observed.in_steps.counts == {}
    # Who is fooled, and whether the reference model is fooled too.
    assert sum(observed.outside.counts.values()) <= 2 * observed.looks
    fill = sum(observed.fills) / max(len(observed.fills), 1)
    print(f"\n{kind} {norm}: {result.calls} calls, {fill:.1%} full, {observed.looks} looks, "
          f"{int(result.fooled.sum())} fooled, {observed.outside.counts}")
