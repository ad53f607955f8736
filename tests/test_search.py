"""The search for devices, on a CPU: official verdicts, full passes, and no wait in a step."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torchattacks
from tasks import Task, trained
from test_official import is_telling, official_verdicts, short
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchattacks.attacks import fab

from attacks import evaluate
from attacks.attacked_model import AttackedModel
from attacks.build import Settings
from attacks.catalog import Attack
from attacks.components.fab import projection_l2, projection_linf
from attacks.isolation import isolated_state
from attacks.search.choice import choose_search
from attacks.search.compiling import compile_network, count_operations
from attacks.search.fab import ROUNDS
from attacks.search.passes import Passes
from attacks.search.run import search
from attacks.search.slots import Slots
from attacks.verdict_file import ForeignVerdictsError
from bench.datasets import augmentation, loading

__all__ = ["short"]
SIZE = 128
# A run of APGD passes one image more than it has steps.
STEPS = {
    "apgd-ce": 99,
    "apgd-dlr": 49,
    "apgd-t": 24,
    "fab-t": 20,
    "square": 200,
    "pgd": 20,
    "cw": 30,
}


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


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the images that slots without a job pass forward, for lack of images."""
    counts, steps = [0], Slots._steps

    def counted(slots: Slots) -> None:
        free = slots.jobs.count(None)
        # A gradient is one forward pass of its two.
        forwards = (slots.search.passes_per_step + 1) // 2
        counts[0] += free * forwards * slots.search.steps_between_looks
        steps(slots)

    monkeypatch.setattr(Slots, "_steps", counted)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.12), ("L2", 0.6)])
def test_the_full_budgets_on_many_images(
    thousand: Task, norm: str, eps: float, idle: list[int]
) -> None:
    net, x, y = (thousand[0], *(part[:300] for part in thousand[1:]))
    options: dict[str, Any] = {"eps": eps, "norm": norm, "probes": 0}
    names = ("pgd20", "pgd100", *(("cw_inf",) if norm == "Linf" else ()))
    exact = evaluate(net, x, y, ("aa", *names), search="exact", **options)
    device = evaluate(net, x, y, ("aa",), search="device", **options)
    passed = device.cost["aa"].forwards - idle[0]
    device |= evaluate(net, x, y, names, search="device", **options)
    for name in ("aa", *names):
        assert device.robust[name].tolist() == exact.robust[name].tolist(), name
    assert 0.3 < exact.accuracy()["aa"] < 0.7
    ratio = passed / exact.cost["aa"].forwards
    print(f"\n{norm}: {ratio:.3f} of the exact search's forward passes")
    assert ratio < 1.06


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

            def counted(
                tensor: Tensor, *args: Any, original: Any = original, **options: Any
            ) -> Any:
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
    steps: int = 0
    fills: list[float] = field(default_factory=list)
    jobs_wait: bool = True


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Observed:
    """Passes of SIZE images, observed."""
    counts, fill, look = Observed(), Slots._fill, Slots._look

    def observed_fill(slots: Slots) -> bool:
        filled = fill(slots)
        waiting = getattr(slots.search, "ready", None)
        enough = len(list(filter(None, slots.jobs))) >= SIZE
        counts.jobs_wait = enough if waiting is None else bool(waiting) or enough
        return filled

    def observed_step(passes: Passes, step: Callable[..., Any], state: dict[str, Tensor]) -> None:
        counts.steps += 1
        if counts.jobs_wait:
            searched = ~state["done"] & (state["margin"] == -torch.inf)
            counts.fills.append(float(searched.float().mean()))
        with host_reads(counts.in_steps):
            state |= step(state)

    def observed_look(slots: Slots) -> None:
        counts.looks += 1
        with host_reads(counts.outside):
            look(slots)

    monkeypatch.setattr(Slots, "_fill", observed_fill)
    monkeypatch.setattr(Slots, "_look", observed_look)
    monkeypatch.setattr(Passes, "run_step", observed_step)
    return counts


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("kind", STEPS)
def test_passes_are_full_and_no_step_waits(
    kind: Any, norm: str, thousand: Task, observed: Observed
) -> None:
    net, x, y = thousand
    settings = Settings(0.12 if norm == "Linf" else 0.6, norm, 0, 32, 10)
    with isolated_state(0):
        search(Attack(kind, STEPS[kind]), AttackedModel(net, x[:2]), x, y, settings, SIZE)
    assert observed.in_steps.counts == {}
    # Who is fooled, and whether the reference model is fooled too.
    assert sum(observed.outside.counts.values()) <= 2 * observed.looks
    fill = sum(observed.fills) / len(observed.fills)
    print(f"\n{kind} {norm}: {observed.steps} steps, {fill:.1%} full, {observed.looks} looks")
    assert fill >= 0.9
    assert len(observed.fills) > 0.5 * observed.steps


def test_extra_passes_of_square_are_few(thousand: Task) -> None:
    """The exact search tries queries in vain; here an image goes on where it was answered."""
    net, x, y = thousand
    settings = Settings(0.12, "Linf", 0, 250, 10)
    model = AttackedModel(net, x[:2])
    with isolated_state(0):
        search(Attack("square", 300), model, x[:256], y[:256], settings, SIZE)
    assert model.forwards < 1.05 * count_queries(net, x[:256], y[:256], 300, settings)


def count_queries(net: nn.Module, x: Tensor, y: Tensor, queries: int, settings: Settings) -> int:
    """Count the passes of torchattacks' own Square, a query after the other."""
    counts, original = [0], torchattacks.Square.margin_and_loss

    class Counted(torchattacks.Square):  # type: ignore[misc]
        def margin_and_loss(self, images: Tensor, labels: Tensor) -> Any:
            counts[0] += len(images)
            return original(self, images, labels)

    options = {"norm": "Linf", "eps": settings.eps, "n_queries": queries, "resc_schedule": False}
    for start in range(0, len(x), settings.batch_size):
        batch = slice(start, start + settings.batch_size)
        with isolated_state(0):
            Counted(net, **options, seed=0)(x[batch], y[batch])
    return counts[0]


@pytest.mark.parametrize(("norm", "kind"), [("Linf", "apgd-ce"), ("L2", "square")])
def test_out_of_memory_halves_the_passes(
    norm: str, kind: Any, thousand: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, y = (thousand[0], *(part[:200] for part in thousand[1:]))
    settings = Settings(0.12 if norm == "Linf" else 0.6, norm, 0, 50, 10)
    attack, run_step, sizes = Attack(kind, 24), Passes.run_step, []

    def verdict() -> Tensor:
        with isolated_state(0):
            return search(attack, AttackedModel(net, x[:2]), x, y, settings, 256).fooled

    expected = verdict()

    def limited(passes: Passes, step: Any, state: dict[str, Tensor]) -> None:
        sizes.append(passes.size)
        # The second step: what the first one did is done again.
        if passes.size > 64 and len(sizes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")
        run_step(passes, step, state)

    monkeypatch.setattr(Passes, "run_step", limited)
    # Passes of another size round otherwise.
    assert int((verdict() != expected).sum()) <= 2
    assert max(sizes[4:]) == 64


def test_out_of_memory_at_one_image_is_one_line(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(passes: Passes, step: Any, state: dict[str, Tensor]) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Passes, "run_step", full)
    with pytest.raises(RuntimeError, match=r"^out of memory with 1 images in a pass$"):
        evaluate(*task, ("apgd_ce",), eps=0.12, probes=0, search="device")


class LowPrecision(nn.Module):
    """A network whose logits differ in low precision: by a factor for some of the images."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            # A question to the images, so that the network is not traced.
            assert x.isfinite().all()
            logits: Tensor = self.net(x.float())
        if torch.is_autocast_enabled("cpu"):
            dark = (x.flatten(1).mean(dim=1) < 0.3)[:, None]
            logits = torch.where(dark, self.factor * logits, logits)
        return logits


def test_logits_that_low_precision_breaks_are_searched_in_full(task: Task) -> None:
    net = LowPrecision(task[0], math.nan)
    options: dict[str, Any] = {"eps": 0.12, "probes": 0}
    exact = evaluate(net, *task[1:], ("apgd_ce",), **options)
    with pytest.warns(UserWarning, match=r"apgd_ce: \d+ images: logits not finite in bf16"):
        device = evaluate(
            net, *task[1:], ("apgd_ce",), search="device", precision="bf16", **options
        )
    # As a batch of their own the images draw other starts.
    assert int((exact.robust["apgd_ce"] != device.robust["apgd_ce"]).sum()) <= 2


def test_what_fools_in_low_precision_alone_does_not_count(task: Task) -> None:
    """With the sign of its logits turned, dark images fool at once, and only there."""
    net = LowPrecision(task[0], -1.0)
    options: dict[str, Any] = {"eps": 0.02, "probes": 0}
    exact = evaluate(net, *task[1:], ("apgd_ce",), **options)
    device = evaluate(net, *task[1:], ("apgd_ce",), search="device", precision="bf16", **options)
    assert device.cost["apgd_ce"].refused > 0
    assert exact.cost["apgd_ce"].refused == 0
    fooled_by_device_alone = exact.robust["apgd_ce"] & ~device.robust["apgd_ce"]
    assert not fooled_by_device_alone.any()
    assert device.robust["apgd_ce"].any()


def test_bfloat16_gives_nearly_the_same_verdicts(thousand: Task) -> None:
    net, x, y = (thousand[0], *(part[:300] for part in thousand[1:]))
    options: dict[str, Any] = {"eps": 0.12, "probes": 0}
    names = ("apgd_ce", "pgd20")
    exact = evaluate(net, x, y, names, **options)
    device = evaluate(net, x, y, names, search="device", precision="bf16", **options)
    for name in names:
        assert int((exact.robust[name] != device.robust[name]).sum()) <= 3


def test_a_randomised_network_is_reported(task: Task) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = task[0]

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits + 2 * torch.randn_like(logits)

    with pytest.warns(UserWarning, match=r"apgd_ce: \d+ images fool in one pass, not in another"):
        evaluate(Noisy(), *task[1:], ("apgd_ce",), eps=0.05, probes=0, search="device")


@pytest.mark.parametrize(
    ("search", "precision", "message"),
    [
        ("fast", "auto", "search = 'fast': auto, exact, device"),
        ("device", "fp16", "precision = 'fp16': auto, fp32, tf32, bf16"),
        ("exact", "bf16", "precision = 'bf16': an exact search is in fp32"),
        ("device", "tf32", r"a search in TF32: this device \(cpu\) has none"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    search: str, precision: str, message: str, task: Task
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(*task, ("apgd_ce",), probes=0, search=search, precision=precision)


def break_off(x: Tensor) -> Tensor:
    raise ValueError("no kernel for this\nin detail")


@pytest.mark.parametrize(
    ("compiled", "reason"),
    [
        (break_off, r"ValueError: no kernel for this$"),
        (lambda x: x.flatten(1)[:, :10], r"compiled, it computes something else$"),
        (lambda x: x.flatten(1)[:, :10] * math.nan, r"compiled, it computes something else$"),
    ],
)
def test_a_network_that_cannot_be_compiled_runs_as_written(
    compiled: Any, reason: str, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"eps": 0.12, "probes": 0, "search": "device"}
    expected = evaluate(*task, ("apgd_ce",), **options).robust["apgd_ce"]
    monkeypatch.setattr("attacks.search.run.pays_to_compile", lambda *_: True)
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: compiled)
    with pytest.warns(UserWarning, match="network is not compiled, which is slower: " + reason):
        verdict = evaluate(*task, ("apgd_ce",), **options).robust["apgd_ce"]
    assert torch.equal(verdict, expected)


def test_a_step_that_cannot_be_captured_is_taken_as_written(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CUDA says of a capture is invented: there is none on a CPU."""
    options: dict[str, Any] = {"eps": 0.12, "probes": 0, "search": "device"}
    expected = evaluate(*task, ("apgd_ce",), **options)
    start = Passes.__init__

    def start_capturing(passes: Passes, *arguments: Any) -> None:
        start(passes, *arguments)
        passes.captures = True

    def fail(step: Any, state: dict[str, Tensor], passes: Passes) -> None:
        step(state)
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")

    monkeypatch.setattr(Passes, "__init__", start_capturing)
    monkeypatch.setattr("attacks.search.passes._StepGraph", fail)
    reason = "operation not permitted when stream is capturing$"
    with pytest.warns(UserWarning, match=f"no CUDA graph of the search, which is slower: {reason}"):
        result = evaluate(*task, ("apgd_ce",), **options)
    assert torch.equal(result.robust["apgd_ce"], expected.robust["apgd_ce"])
    assert result.cost["apgd_ce"].forwards == expected.cost["apgd_ce"].forwards


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler of C++")
def test_a_compiled_network_gives_the_same_verdicts(
    task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"eps": 0.12, "probes": 0, "search": "device"}
    expected = evaluate(*task, ("apgd_ce", "pgd20"), **options).robust
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("attacks.search.run.pays_to_compile", lambda *_: True)
    made, original = [], compile_network

    def kept(*arguments: Any) -> Any:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr("attacks.search.passes.compile_network", kept)
    verdicts = evaluate(*task, ("apgd_ce", "pgd20"), **options).robust
    assert len(made) == 2
    assert None not in made
    assert any(tmp_path.rglob("*.so"))
    for name, expectation in expected.items():
        assert torch.equal(verdicts[name], expectation)


def test_operations_are_those_of_one_image() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 64, 10))
    multiplications = 8 * 8 * 8 * 3 * 9 + 8 * 64 * 10
    assert count_operations(network, torch.rand(5, 3, 8, 8)) == 2 * multiplications


def test_the_device_chooses_the_search() -> None:
    assert choose_search("auto", "auto", torch.device("cpu")) == ("exact", "fp32")
    assert choose_search("device", "auto", torch.device("cpu")) == ("device", "fp32")
    names = {"eps", "norm", "seed", "batch_size", "num_classes"}
    assert set(Settings(0.1, "Linf", 0).key) == names


def test_a_file_of_verdicts_is_of_one_search(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.npz"
    evaluate(*task, ("pgd10",), eps=0.1, probes=0, record=path)
    with pytest.raises(ForeignVerdictsError):
        evaluate(*task, ("pgd10",), eps=0.1, probes=0, record=path, search="device")


@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 30.0])
def test_projections_without_a_look_are_those_with_one(scale: float) -> None:
    torch.manual_seed(0)
    points = torch.rand(200, 192)
    w = torch.randn(200, 192) * torch.rand(200, 1)
    b = (w * points).sum(dim=1) + scale * torch.randn(200)
    assert torch.equal(projection_linf(points, w, b, rounds=ROUNDS), projection_linf(points, w, b))
    assert torch.equal(projection_l2(points, w, b), fab.projection_l2(points, w, b))
