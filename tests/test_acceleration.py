"""What makes training fast: compiled networks are the same function, and no step of a method waits for the device."""

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
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from bench import models
from bench.datasets import loading
from bench.protocol.spec import Spec
from bench.protocol.suites import Training
from bench.training import compiling, memory_layout
from bench.training.trainer import Trainer, TrainingModule
from methods.base import Batch, Method
from methods.fold import fold

DATA = loading.load_data("digits", "unused", limit_train=96, limit_test=40, limit_val=40)
BUFFERS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "equal",
    "unique",
    "is_nonzero",
}


class Waits(TorchDispatchMode):
    """Collects what would make a host wait for a CUDA device: it reads the result, or the size depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        masks = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in BUFFERS or masks:
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def trainer(work: Path, method: Method, precision: Any = "fp32", **changes: Any) -> Trainer:
    training = Training(epochs=3, batch=32, lr=0.05, **changes)
    spec = Spec(suite="digits", role="student", dataset="digits", arch="resnet8-w4", method="any", hyper={}, teachers={},
                seed=0, training=training, eps=0.15, inner_step=0.06, inner_steps=2, attacks=(), full_checkpoints=(),
                precision=precision)  # fmt: skip
    torch.manual_seed(0)
    student = models.build(spec.arch, DATA.info)
    teachers = {role: models.build("resnet8-w8", DATA.info) for role in ("robust", "natural")}
    return Trainer(TrainingModule(method, student, teachers, len(DATA.train)), DATA, spec, work)


@pytest.mark.parametrize("name", methods.builtin())
@pytest.mark.parametrize("official", [False, True], ids=["paper", "official"])
def test_no_step_waits_for_the_device(name: str, official: bool, tmp_path: Path) -> None:
    """But the first of an epoch, which may."""
    form = methods.load(name)
    run = trainer(tmp_path, form(**(methods.base.official_values(form) if official else {})))
    for epoch in range(3):
        run.module.train()
        for number, index in enumerate(run.epoch_batches()[:2]):
            with Waits() as waits:
                batch = run.make_batch(index, epoch)
                terms, total = run.loss_terms(batch, run.attack(batch))
                total.backward()  # type: ignore[no-untyped-call]
                run.module.method.after_step(run.module.nets, batch)
            assert terms
            assert number == 0 or not waits.found, f"epoch {epoch}: {waits.found}"


@pytest.mark.parametrize(
    ("name", "depends"), [("rslad", False), ("gacd", False), ("fair_rslad", True), ("igdm", True)]
)
def test_a_method_says_whether_a_step_depends_on_its_epoch(name: str, depends: bool) -> None:
    assert methods.load(name)().epoch_dependent is depends


@pytest.mark.parametrize("name", methods.builtin())
def test_bf16_is_the_same_loss_up_to_rounding(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each term on the same images. A processor without bfloat16 imitates it here, where it does not otherwise."""
    monkeypatch.setattr("bench.training.trainer.has_bf16", lambda device: True)
    found, images = [], []
    for precision in ("fp32", "bf16"):
        run = trainer(tmp_path, methods.load(name)(), precision)
        assert ("bf16" in run.training_path) == (precision == "bf16")
        run.module.train()
        torch.manual_seed(0)
        batch = run.make_batch(run.epoch_batches()[0], 0)
        images.append(run.attack(batch))
        terms, total = run.loss_terms(batch, images[0])
        total.backward()  # type: ignore[no-untyped-call]
        found.append({key: value.item() for key, value in terms.items()})
    assert found[1] != found[0]
    assert found[1] == pytest.approx(found[0], rel=0.02, abs=0.01)
    same = torch.equal(*images)  # the attack runs in bfloat16 too; some methods have none
    assert same == (not run.module.method.adversarial)


@pytest.mark.parametrize(("bf16", "amx"), [(True, False), (False, True), (False, False)])
def test_what_has_bf16(bf16: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert memory_layout.has_bf16(torch.device("cpu")) == (bf16 or amx)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (12, 0)])
def test_what_cards_have_bf16(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert memory_layout.has_bf16(torch.device("cuda")) == (capability != (7, 5))


def test_bf16_gives_way_to_fp32_where_the_processor_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.training.trainer.has_bf16", lambda device: False)
    ends = []
    for precision in ("fp32", "bf16"):
        run = trainer(tmp_path / precision, methods.load("rslad")(), precision)
        run.module.train()
        run.set_learning_rates(0)
        torch.manual_seed(0)
        run.update(run.make_batch(run.epoch_batches()[0], 0))
        ends.append(run.module.state_dict())
    assert run.training_path[-1] == "fp32 (no bf16 here)"
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_waiting_is_noticed() -> None:
    x = torch.rand(3)
    for wait in (
        lambda: x[x > 0.5],
        lambda: x.sum().item(),
        lambda: bool(x[0] > 0),
        lambda: x.nonzero(),
    ):
        with Waits() as waits:
            wait()
        assert waits.found


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Networks are traced and differentiated as on a CUDA device, and no code is generated; an entry for each time."""
    times: list[int] = []
    real = torch.compile

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        times.append(len(inputs))
        return aot_eager(module, inputs)  # type: ignore[no-untyped-call, no-any-return]

    monkeypatch.setattr(
        torch, "compile", lambda function, **options: real(function, backend=backend, **options)
    )
    yield times
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["rslad", "gacd", "fair_rslad", "ciard", "peeraid", "dgad"])
def test_compiled_networks_are_the_same_function(
    name: str, compiled: list[int], tmp_path: Path
) -> None:
    """In double precision; nothing is compiled again after the first step."""
    slow, fast = (trainer(tmp_path, methods.load(name)(), averaging=()) for _ in range(2))
    for run in (slow, fast):
        run.module.double()
        for teacher in run.module.nets.teachers.values():
            teacher.double()
    assert compiling.compile_networks(fast.module.nets, lambda: loss(fast)) == "compiled"
    for a, b in zip(slow.module.buffers(), fast.module.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    counts = []
    for number in range(3):
        for run in (slow, fast):
            torch.manual_seed(number)
            run.set_learning_rates(number)
            run.update(images(run))
        counts.append(len(compiled))
    assert counts[0] == counts[-1] >= 3
    for (key, a), b in zip(
        slow.module.state_dict().items(), fast.module.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, msg=key)


def images(run: Trainer) -> Batch:
    batch = run.make_batch(torch.arange(32), 0)
    return dataclasses.replace(batch, x=batch.x.to(next(run.module.parameters()).dtype))


def loss(run: Trainer) -> Tensor:
    batch = images(run)
    return run.loss_terms(batch, run.attack(batch))[1]


@pytest.mark.usefixtures("compiled")
def test_a_copy_of_a_compiled_network_has_its_own_weights(tmp_path: Path) -> None:
    nets = trainer(tmp_path, methods.load("pgd_at")()).objective.nets
    compiling.compile_networks(nets, lambda: nets.student.linear.weight.sum())  # type: ignore[union-attr, operator]
    other = copy.deepcopy(nets.student)
    assert vars(other)["features"].args[0] is other


@pytest.mark.usefixtures("compiled")
def test_what_cannot_be_compiled_runs_as_it_is_written(tmp_path: Path) -> None:
    """A gradient of a gradient."""
    run = trainer(tmp_path, methods.load("kdiga")())
    buffers = copy.deepcopy(list(run.module.buffers()))
    path = compiling.compile_networks(run.module.nets, lambda: loss(run))
    assert path == "not compiled (RuntimeError)"
    assert all(torch.equal(a, b) for a, b in zip(buffers, run.module.buffers(), strict=True))
    assert all(value.grad is None for value in run.module.parameters())
    assert not any("features" in vars(net) for net in memory_layout.all_networks(run.module.nets))
    run.update(run.make_batch(torch.arange(32), 0))
    assert fold(run.module.nets.student.eval()), "its attacks are not folded any more"


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


STEPS = """
import sys, torch
from bench import models
from bench.training.memory_layout import arrange_memory
from bench.datasets import CIFAR10
from methods.base import Nets
net = models.build(sys.argv[1], CIFAR10)
assert arrange_memory(Nets(net, {}, torch.nn.ModuleDict()), torch.device("cpu"))[0] == "channels-last"
for _ in range(5):
    net(torch.rand(20, 3, 32, 32)).square().mean().backward()
"""


@pytest.mark.parametrize(
    "arch", ["resnet8-w16-s2", "mobilenetv2", "wrn10-1", "preactresnet18-w16", "wrn10-1-silu"]
)
def test_training_leaves_the_heap_sound(arch: str) -> None:
    """Under glibc's own checks, which end the process at the first block that was written beyond."""
    checks = "libc_malloc_debug.so.0"
    try:
        ctypes.CDLL(checks)
    except OSError:
        pytest.skip(f"needs glibc's {checks}")
    environment = os.environ | {"LD_PRELOAD": checks, "MALLOC_CHECK_": "3"}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, arch], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    script = """
import resource, statistics, torch
from bench.training.memory_layout import keep_freed_memory
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(4_000_000).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert keep_freed_memory()
print(statistics.median(pages() for _ in range(21)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 100  # of the 7,800 that two such tensors have
