"""On a CUDA device: captured steps equal steps as written; evaluation and runs work there."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from specs import make_spec
from tasks import trained
from torch import Tensor

import attacks
import methods
from attacks.search.passes import Passes
from bench import models
from bench.datasets import augmentation, loading
from bench.models import checkpoint
from bench.training import compiling, cuda_graphs
from bench.training.trainer import Trainer, TrainingModule
from leaderboards.schema.spec import Training
from methods import inner
from methods.base import Method
from methods.inner import Budget, ce, pgd
from methods.pgd_at import PgdAt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DATA = loading.load_data("digits", "unused", limit_train=400, limit_test=40, limit_val=40)
# Batches of an epoch, which has twelve, that the tests of single steps use.
STEPS = 6


@pytest.fixture(autouse=True)
def exact_arithmetic() -> Iterator[None]:
    """Compute in single precision without TF32, with the same algorithms each time."""
    cudnn = torch.backends.cudnn
    saved = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, cudnn.deterministic = False, True
    yield
    cudnn.allow_tf32, cudnn.deterministic = saved


def make_trainer(folder: Path, method: Method, precision: Any = "fp32") -> Trainer:
    folder.mkdir(exist_ok=True)
    training = Training(epochs=3, batch=32, lr=0.02, schedule="onecycle")
    spec = make_spec(training, arch="resnet8-w8", inner_steps=3, precision=precision)
    torch.manual_seed(0)
    student = models.build(spec.arch, DATA.info).cuda()
    teachers = {}
    for role in ("robust", "natural"):
        teachers[role] = models.build("resnet8-w8", DATA.info).cuda()
    module = TrainingModule(method, student, teachers, len(DATA.train)).cuda()
    return Trainer(module, DATA.to("cuda"), spec, folder)


def ignore(*_: object) -> None:
    pass


def fit_and_log(trainer: Trainer) -> list[dict[str, float]]:
    """Train and return the logged metrics of each epoch."""
    rows: list[dict[str, float]] = []
    trainer.fit(lambda row, _: rows.append(row), ignore)
    return rows


def run_captured(trainer: Trainer, epoch: int) -> cuda_graphs.Step:
    """Make the steps of an epoch with its step function and return that function."""
    trainer.module.train()
    torch.manual_seed(epoch)
    run_step = trainer.step_function(epoch)
    run_steps(trainer, epoch, run_step)
    return run_step


def run_as_written(trainer: Trainer, epoch: int) -> None:
    """Make the same steps without a capture."""
    trainer.module.train()
    torch.manual_seed(epoch)
    run_steps(trainer, epoch, lambda index: trainer.update(trainer.make_batch(index, epoch)))


def run_steps(trainer: Trainer, epoch: int, run_step: cuda_graphs.Step) -> None:
    for step, index in enumerate(trainer.epoch_batches()[:STEPS]):
        trainer.set_learning_rates(12 * epoch + step)
        run_step(index)


def trained_state(trainer: Trainer) -> dict[str, Tensor]:
    """Return weights, buffers and averaged weights by name."""
    average = dict(trainer.averages["ema"].named_parameters())
    return trainer.module.state_dict() | average


@pytest.mark.parametrize("name", methods.builtin())
def test_a_captured_step_is_the_step_as_written(name: str, tmp_path: Path) -> None:
    """Weights, buffers and averages agree after two epochs.

    Steps are replayed from the third on, of the run or of each epoch.
    """
    captured = make_trainer(tmp_path, methods.load(name)())
    as_written = make_trainer(tmp_path, methods.load(name)())
    for epoch in range(2):
        run_step = run_captured(captured, epoch)
        assert isinstance(run_step, cuda_graphs.CapturedStep)
        assert run_step.graph is not None, "the second step waited for the device"
        run_as_written(as_written, epoch)
    actual, expected = trained_state(captured), trained_state(as_written)
    for key in actual:
        torch.testing.assert_close(
            actual[key], expected[key], rtol=1e-3, atol=1e-4, equal_nan=True, msg=key
        )


def test_replayed_steps_draw_fresh_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmented images and starts of attacks, in two epochs, are those of steps as written."""
    starts, start_noise = [], inner._start_noise

    def kept_noise(*arguments: Any) -> Tensor:
        starts.append(start_noise(*arguments))
        return starts[-1]

    monkeypatch.setattr(inner, "_start_noise", kept_noise)
    drawn: dict[bool, list[Tensor]] = {}
    for replays in (True, False):
        trainer = make_trainer(tmp_path, methods.load("pgd_at")())
        drawn[replays] = []

        def step(index: Tensor, trainer: Trainer = trainer) -> dict[str, Tensor]:
            batch = trainer.make_batch(index, 0)
            trainer.update(batch)
            return {"images": batch.x, "start": starts[-1]}

        assert trainer.graphs
        graphs = trainer.graphs
        trainer.module.train()
        for epoch in range(2):
            torch.manual_seed(epoch)
            run_step = graphs.step_of_epoch(step, epoch_dependent=False) if replays else step
            for number, index in enumerate(trainer.epoch_batches()[:STEPS]):
                trainer.set_learning_rates(12 * epoch + number)
                drawn[replays] += [value.clone() for value in run_step(index).values()]
        assert replays == (graphs.last_step is not None and graphs.last_step.graph is not None)
    assert len(drawn[True]) == 2 * 2 * STEPS
    for replayed, written in zip(drawn[True], drawn[False], strict=True):
        assert torch.equal(replayed, written)
    for number, value in enumerate(drawn[True]):
        assert not any(torch.equal(value, other) for other in drawn[True][:number])


@pytest.mark.parametrize(("name", "depends"), [("rslad", False), ("igdm", True)])
def test_epoch_dependent_steps_are_captured_in_each_epoch(
    name: str, depends: bool, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, methods.load(name)())
    first = run_captured(trainer, 0)
    second = run_captured(trainer, 1)
    assert (first is not second) == depends


def test_a_captured_run_trains_and_resumes(tmp_path: Path) -> None:
    rslad = methods.load("rslad")()
    unbroken = make_trainer(tmp_path / "unbroken", rslad)
    rows = fit_and_log(unbroken)
    assert unbroken.training_path == ["captured"]
    assert rows[-1]["train/kl_adv"] < rows[0]["train/kl_adv"]

    def kill(stage: str, done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "killed", rslad).fit(ignore, kill)
    resumed = fit_and_log(make_trainer(tmp_path / "killed", rslad))
    assert resumed[-1]["train/kl_adv"] == pytest.approx(rows[-1]["train/kl_adv"], rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["rslad", "gacd"])
def test_a_compiled_run_trains_as_the_run_as_written(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses after three epochs are about the same, and the checkpoints can be read."""
    final_losses = []
    for compiled in (False, True):
        min_images = 1 if compiled else 10**9
        monkeypatch.setattr("bench.training.trainer.MIN_IMAGES_TO_COMPILE", min_images)
        folder = tmp_path / f"compiled-{compiled}"
        trainer = make_trainer(folder, methods.load(name)(), precision)
        last_row = fit_and_log(trainer)[-1]
        path = ["bf16"] if precision == "bf16" else []
        if compiled:
            path.append("compiled")
        assert trainer.training_path == [*path, "captured"]
        checkpoint.load(folder / "best.pt", "resnet8-w8", DATA.info)
        terms = [value for key, value in last_row.items() if key.startswith("train/")]
        final_losses.append(sum(terms))
    assert final_losses[1] == pytest.approx(final_losses[0], rel=0.1)


def test_networks_that_cannot_be_compiled_are_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.training.trainer.MIN_IMAGES_TO_COMPILE", 1)
    trainer = make_trainer(tmp_path, methods.load("kdiga")())
    trainer.fit(ignore, ignore)
    assert trainer.training_path == ["not compiled (RuntimeError)", "captured"]


def test_a_step_that_waits_is_not_captured(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class WaitingPgdAt(PgdAt):
        def after_step(self, nets: Any, batch: object) -> None:
            assert next(nets.student.parameters()).sum().item() != 0

    trainer = make_trainer(tmp_path, WaitingPgdAt())
    trainer.fit(ignore, ignore)
    assert trainer.training_path == []


def test_compiled_attacks_find_the_same_images(tmp_path: Path) -> None:
    """In double precision, but for signs of vanishing gradients."""
    trainer = make_trainer(tmp_path, methods.load("rslad")())
    net = trainer.module.nets.student.double()
    x = torch.rand(16, 1, 8, 8, device="cuda", dtype=torch.float64)
    y = torch.arange(16, device="cuda") % 10
    budget = Budget(0.15, 0.06, 3)
    as_written = pgd(net, x, ce(y), budget, start="none")
    path = compiling.compile_networks(trainer.module.nets, lambda: net(x).sum())
    assert path == "compiled"
    compiled = pgd(net, x, ce(y), budget, start="none")
    assert as_written.ne(compiled).float().mean() < 1e-3


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Two epochs of 504 steps end with the same memory, after a first one to warm up."""
    trainer = make_trainer(tmp_path, methods.load("gacd")())
    run_captured(trainer, 0)
    allocated = []
    for epoch in range(1, 3):
        run_step = trainer.step_function(epoch)
        for _ in range(84):
            for index in trainer.epoch_batches()[:STEPS]:
                run_step(index)
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[1] <= allocated[0] * 1.001


def test_verdicts_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    net = models.build("resnet8-w4", DATA.info).eval()
    x, y = augmentation.to_float(DATA.test.x), DATA.test.y
    names = ["fgsm", "pgd20", "aa"]
    on_cpu = attacks.evaluate(net, x, y, names, eps=0.02)
    on_gpu = attacks.evaluate(net.cuda(), x.cuda(), y.cuda(), names, eps=0.02)
    for name in names:
        differs = on_cpu.robust[name].ne(on_gpu.robust[name])
        assert differs.float().mean() <= 0.05, name


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.12), ("L2", 0.6)])
def test_a_search_in_full_passes_finds_the_same(norm: str, eps: float, precision: str) -> None:
    """Captured as CUDA graphs: a step that cannot be warns."""
    net, x, y = trained(10)
    task = net.cuda(), x.cuda(), y.cuda()
    names = ("aa", "pgd20")
    exact = attacks.evaluate(*task, names, eps=eps, norm=norm, probes=0, search="exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        device = attacks.evaluate(
            *task, names, eps=eps, norm=norm, probes=0, search="device", precision=precision
        )
    for name in names:
        assert int((exact.robust[name] != device.robust[name]).sum()) <= 1


def test_replayed_steps_are_the_steps_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = trained(10)
    task = net.cuda(), x.cuda(), y.cuda()
    options: dict[str, Any] = {"eps": 0.12, "probes": 0, "search": "device", "precision": "fp32"}
    replayed = attacks.evaluate(*task, ("aa",), **options)
    start = Passes.__init__

    def start_as_written(passes: Passes, *arguments: Any) -> None:
        start(passes, *arguments)
        passes.captures = False

    monkeypatch.setattr(Passes, "__init__", start_as_written)
    written = attacks.evaluate(*task, ("aa",), **options)
    assert torch.equal(replayed.robust["aa"], written.robust["aa"])
    assert replayed.cost["aa"].forwards == written.cost["aa"].forwards
    assert replayed.cost["aa"].backwards == written.cost["aa"].backwards


@pytest.mark.e2e
def test_the_program_runs_on_a_gpu(tmp_path: Path) -> None:
    arguments = "run --suite digits --method natural --student resnet8-w4 --epochs 2 --seeds 0"
    result = subprocess.run(
        [sys.executable, "-m", "bench", *arguments.split(), "--device", "cuda"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "clean" in result.stderr + result.stdout
