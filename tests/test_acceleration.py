"""Fast training: compiled networks are the same function, and no step waits for the device."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from records import make_context
from specs import make_spec
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from bench import models
from bench.datasets import loading
from bench.system.errors import BenchError
from bench.training import compiling, memory_layout
from bench.training.trainer import Trainer, TrainingModule
from leaderboards.schema.spec import Training
from methods.base import Batch, Method
from methods.fold import fold

DATA = loading.load_data("digits", "unused", limit_train=96, limit_test=40, limit_val=40)
# Operators whose result the host reads, or whose size depends on values.
WAITING_OPERATORS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "equal",
    "unique",
    "is_nonzero",
}


class WaitRecorder(TorchDispatchMode):
    """Collect the operators that would make the host wait for a CUDA device."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in WAITING_OPERATORS or (name == "index" and has_mask(args[1])):
            self.operators.add(name)
        return func(*args, **(kwargs or {}))


def has_mask(indices: list[Tensor | None]) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def make_trainer(folder: Path, method: Method, precision: Any = "fp32", **changes: Any) -> Trainer:
    """Return a trainer with a robust and a natural teacher; `changes` are fields of Training."""
    folder.mkdir(exist_ok=True)
    training = Training(epochs=3, batch=32, lr=0.05, **changes)
    spec = make_spec(training, precision=precision)
    torch.manual_seed(0)
    student = models.build(spec.arch, DATA.info)
    teachers = {role: models.build("resnet8-w8", DATA.info) for role in ("robust", "natural")}
    module = TrainingModule(method, student, teachers, len(DATA.train))
    return Trainer(module, DATA, spec, folder)


def first_batch(trainer: Trainer) -> Batch:
    return trainer.make_batch(trainer.epoch_batches()[0], 0)


def fixed_batch(trainer: Trainer) -> Batch:
    """Return the first 32 images in the precision of the networks."""
    batch = trainer.make_batch(torch.arange(32), 0)
    dtype = next(trainer.module.parameters()).dtype
    return dataclasses.replace(batch, x=batch.x.to(dtype))


def rehearse(trainer: Trainer) -> Tensor:
    """Return the loss on the fixed batch."""
    batch = fixed_batch(trainer)
    return trainer.loss_terms(batch, trainer.attack(batch))[1]


@pytest.mark.parametrize("name", methods.builtin())
@pytest.mark.parametrize("official", [False, True], ids=["paper", "official"])
def test_no_step_waits_for_the_device(name: str, official: bool, tmp_path: Path) -> None:
    """Only the first step of an epoch may wait."""
    method_class = methods.load(name)
    switches = methods.base.official_values(method_class) if official else {}
    trainer = make_trainer(tmp_path, method_class(**switches))
    for epoch in range(3):
        trainer.module.train()
        for step, index in enumerate(trainer.epoch_batches()[:2]):
            with WaitRecorder() as waits:
                batch = trainer.make_batch(index, epoch)
                terms, total = trainer.loss_terms(batch, trainer.attack(batch))
                total.backward()  # type: ignore[no-untyped-call]
                trainer.module.method.after_step(trainer.module.nets, batch)
            assert terms
            assert step == 0 or not waits.operators, f"epoch {epoch}: {waits.operators}"


@pytest.mark.parametrize(
    ("name", "depends"), [("rslad", False), ("gacd", False), ("fair_rslad", True), ("igdm", True)]
)
def test_epoch_dependent_methods(name: str, depends: bool) -> None:
    assert methods.load(name)().epoch_dependent is depends


@pytest.mark.parametrize("name", methods.builtin())
def test_bf16_is_the_same_loss_up_to_rounding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each term agrees on the same images."""
    # A processor without bfloat16 imitates it here, but in no real run.
    monkeypatch.setattr("bench.training.trainer.has_bf16", lambda device: True)
    losses, examples = [], []
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(tmp_path, methods.load(name)(), precision)
        assert ("bf16" in trainer.training_path) == (precision == "bf16")
        trainer.module.train()
        torch.manual_seed(0)
        batch = first_batch(trainer)
        examples.append(trainer.attack(batch))
        terms, total = trainer.loss_terms(batch, examples[0])
        total.backward()  # type: ignore[no-untyped-call]
        losses.append({key: value.item() for key, value in terms.items()})
    fp32, bf16 = losses
    assert bf16 != fp32
    assert bf16 == pytest.approx(fp32, rel=0.02, abs=0.01)
    # The attack runs in bfloat16 too; some methods have none.
    same_examples = torch.equal(*examples)
    assert same_examples == (not trainer.module.method.adversarial)


@pytest.mark.parametrize(("bf16", "amx"), [(True, False), (False, True), (False, False)])
def test_processors_with_bf16(bf16: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert memory_layout.has_bf16(torch.device("cpu")) == (bf16 or amx)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (12, 0)])
def test_cards_with_bf16(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert memory_layout.has_bf16(torch.device("cuda")) == (capability != (7, 5))


def test_bf16_gives_way_to_fp32_where_the_processor_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.training.trainer.has_bf16", lambda device: False)
    states = []
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(tmp_path / precision, methods.load("rslad")(), precision)
        trainer.module.train()
        trainer.set_learning_rates(0)
        torch.manual_seed(0)
        trainer.update(first_batch(trainer))
        states.append(trainer.module.state_dict())
    assert trainer.training_path[-1] == "fp32 (no bf16 here)"
    fp32, bf16 = states
    assert all(torch.equal(fp32[key], bf16[key]) for key in fp32)


def test_waits_are_recorded() -> None:
    x = torch.rand(3)
    waiting: list[Callable[[], object]] = [
        lambda: x[x > 0.5],
        lambda: x.sum().item(),
        lambda: bool(x[0] > 0),
        lambda: x.nonzero(),
    ]
    for wait in waiting:
        with WaitRecorder() as waits:
            wait()
        assert waits.operators


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Trace and differentiate networks as on a CUDA device, without generating code.

    The list gets an entry, the number of inputs, for each compilation.
    """
    input_counts: list[int] = []
    compile_for_device = torch.compile

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        input_counts.append(len(inputs))
        return aot_eager(module, inputs)

    def compile_without_code(function: Callable[..., Any], **options: Any) -> Any:
        return compile_for_device(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_without_code)
    yield input_counts
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["rslad", "gacd", "fair_rslad", "ciard", "peeraid", "dgad"])
def test_compiled_networks_are_the_same_function(
    name: str, compilations: list[int], tmp_path: Path
) -> None:
    """In double precision; the first step compiles all there is to compile."""
    as_written = make_double_trainer(name, tmp_path)
    compiled = make_double_trainer(name, tmp_path)
    path = compiling.compile_networks(compiled.module.nets, lambda: rehearse(compiled))
    assert path == "compiled"
    buffers = zip(as_written.module.buffers(), compiled.module.buffers(), strict=True)
    for expected, actual in buffers:
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    counts = []
    for step in range(3):
        for trainer in (as_written, compiled):
            torch.manual_seed(step)
            trainer.set_learning_rates(step)
            trainer.update(fixed_batch(trainer))
        counts.append(len(compilations))
    assert counts[0] == counts[-1] >= 3
    expected_state = as_written.module.state_dict()
    actual_state = compiled.module.state_dict()
    assert list(actual_state) == list(expected_state)
    for key, value in expected_state.items():
        torch.testing.assert_close(actual_state[key], value, msg=key)


def make_double_trainer(name: str, folder: Path) -> Trainer:
    trainer = make_trainer(folder, methods.load(name)(), averaging=())
    trainer.module.double()
    for teacher in trainer.module.nets.teachers.values():
        teacher.double()
    return trainer


@pytest.mark.usefixtures("compilations")
def test_a_copy_of_a_compiled_network_has_its_own_weights(tmp_path: Path) -> None:
    nets = make_trainer(tmp_path, methods.load("pgd_at")()).module.nets
    weight = nets.student.get_parameter("linear.weight")
    compiling.compile_networks(nets, lambda: weight.sum())
    duplicate = copy.deepcopy(nets.student)
    assert vars(duplicate)["features"].args[0] is duplicate


@pytest.mark.usefixtures("compilations")
def test_networks_that_cannot_be_compiled_run_as_written(tmp_path: Path) -> None:
    """The loss of KDIGA needs a gradient of a gradient."""
    trainer = make_trainer(tmp_path, methods.load("kdiga")())
    module = trainer.module
    buffers = copy.deepcopy(list(module.buffers()))
    path = compiling.compile_networks(module.nets, lambda: rehearse(trainer))
    assert path == "not compiled (RuntimeError)"
    pairs = zip(buffers, module.buffers(), strict=True)
    assert all(torch.equal(before, after) for before, after in pairs)
    assert all(value.grad is None for value in module.parameters())
    networks = memory_layout.all_networks(module.nets)
    assert not any("features" in vars(net) for net in networks)
    trainer.update(trainer.make_batch(torch.arange(32), 0))
    assert fold(module.nets.student.eval()), "its attacks are not folded any more"


@pytest.mark.usefixtures("compilations")
@pytest.mark.parametrize("fails_in", [0, 2])
def test_compiled_code_that_fails_later_is_left(
    fails_in: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The epoch is begun again: in the first one nothing is left of what was compiled."""
    as_written = make_trainer(tmp_path / "written", methods.load("rslad")())
    expected: list[dict[str, float]] = []
    as_written.fit(lambda row, _: expected.append(row), lambda *_: None)
    trainer = make_trainer(tmp_path / "compiled", methods.load("rslad")())
    update, epochs = trainer.update, []

    def fail_in_the_second_step(batch: Batch) -> dict[str, Tensor]:
        epochs.append(batch.epoch)
        if trainer.compiled and epochs.count(fails_in) == 2:
            raise RuntimeError("no such kernel\nas this")
        return update(batch)

    monkeypatch.setattr(trainer, "update", fail_in_the_second_step)
    monkeypatch.setattr(trainer, "_pays_to_compile", lambda epochs: True)
    rows: list[dict[str, float]] = []
    monkeypatch.setattr("bench.system.log.LOGGER.propagate", True)
    trainer.fit(lambda row, _: rows.append(row), lambda *_: None)
    assert trainer.training_path[-1] == f"not compiled since epoch {fails_in} (RuntimeError)"
    assert f"compiled code failed in epoch {fails_in}, it is not used now: no such" in caplog.text
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    exact = {"rel": 0, "abs": 0} if fails_in == 0 else {"rel": 0.02}
    for row, expectation in zip(rows, expected, strict=True):
        assert row == pytest.approx(expectation, **exact)


@pytest.mark.usefixtures("compilations")
def test_other_errors_are_not_taken_for_the_compilers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss that is not finite, too little memory, and what fails as written too."""
    for error in (BenchError("nan"), torch.OutOfMemoryError("full"), ValueError("again")):
        trainer = make_trainer(tmp_path / type(error).__name__, methods.load("rslad")())
        calls = []

        def fail(batch: Batch, error: Exception = error, calls: list[int] = calls) -> None:
            calls.append(batch.epoch)
            raise error

        monkeypatch.setattr(trainer, "update", fail)
        monkeypatch.setattr(trainer, "_pays_to_compile", lambda epochs: True)
        with pytest.raises(type(error)):
            trainer.fit(lambda *_: None, lambda *_: None)
        assert len(calls) == (2 if isinstance(error, ValueError) else 1)


@pytest.mark.parametrize(
    ("arch", "safe"),
    [
        ("resnet8-w4", False),
        ("resnet8-w8", False),
        ("resnet8-w16-s2", True),
        ("resnet18", True),
        ("mobilenetv2", True),
    ],
)
def test_narrow_networks_stay_channels_first_on_a_cpu(arch: str, safe: bool) -> None:
    assert memory_layout.is_channels_last_safe(models.build(arch, DATA.info)) is safe


TRAINING_SCRIPT = """
import sys, torch
from bench import models
from bench.training.memory_layout import arrange_memory
from bench.datasets import CIFAR10
from methods.base import Nets
net = models.build(sys.argv[1], CIFAR10)
path = arrange_memory(Nets(net, {}, torch.nn.ModuleDict()), torch.device("cpu"))
assert path[0] == "channels-last"
for _ in range(5):
    net(torch.rand(20, 3, 32, 32)).square().mean().backward()
"""


@pytest.mark.parametrize(
    "arch", ["resnet8-w16-s2", "mobilenetv2", "wrn10-1", "preactresnet18-w16", "wrn10-1-silu"]
)
def test_training_does_not_corrupt_the_heap(arch: str) -> None:
    """glibc's own checks end the process at the first write past a block."""
    checks = "libc_malloc_debug.so.0"
    try:
        ctypes.CDLL(checks)
    except OSError:
        pytest.skip(f"needs glibc's {checks}")
    result = subprocess.run(
        [sys.executable, "-c", TRAINING_SCRIPT, arch],
        env=os.environ | {"LD_PRELOAD": checks, "MALLOC_CHECK_": "3"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


PAGES_SCRIPT = """
import resource, statistics, torch
from bench.training.memory_layout import keep_freed_memory
def count_new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(4_000_000).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert keep_freed_memory()
print(statistics.median(count_new_pages() for _ in range(21)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PAGES_SCRIPT], capture_output=True, text=True, check=True
    )
    # Two such tensors have 7,800 pages.
    assert float(result.stdout) < 100


@pytest.mark.parametrize("stated", ["", "elsewhere"])
def test_compiled_code_is_kept_in_the_store(
    stated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv(name, stated)
    if not stated:
        monkeypatch.delenv(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_context(tmp_path)
    assert os.environ[name] == (stated or str(tmp_path.resolve() / "compiled"))
