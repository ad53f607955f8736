"""On a CUDA device: a captured step does what the step as written does; evaluation and whole runs work there."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import attacks
import methods
from bench import models
from bench.datasets import augmentation, loading
from bench.models import checkpoint
from bench.protocol.spec import Spec
from bench.protocol.suites import Training
from bench.training import compiling, cuda_graphs
from bench.training.trainer import Trainer, TrainingModule
from methods.base import Method
from methods.inner import Budget, ce, pgd

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DATA = loading.load_data("digits", "unused", limit_train=400, limit_test=40, limit_val=40)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Single precision without TF32, the same algorithms each time."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


def trainer(work: Path, method: Method, **changes: object) -> Trainer:
    work.mkdir(exist_ok=True)
    options = {"epochs": 3, "batch": 32, "lr": 0.02, "schedule": "onecycle"} | changes
    precision = options.pop("precision", "fp32")
    training = Training(**options)  # type: ignore[arg-type]
    spec = Spec(suite="digits", role="student", dataset="digits", arch="resnet8-w8", method="any", hyper={}, teachers={},
                seed=0, training=training, eps=0.15, inner_step=0.06, inner_steps=3, attacks=(), full_checkpoints=(),
                precision=precision)  # type: ignore[arg-type]  # fmt: skip
    torch.manual_seed(0)
    student = models.build(spec.arch, DATA.info).cuda()
    teachers = {
        role: models.build("resnet8-w8", DATA.info).cuda() for role in ("robust", "natural")
    }
    objective = TrainingModule(method, student, teachers, len(DATA.train)).cuda()
    return Trainer(objective, DATA.to("cuda"), spec, work)


def ignore(*_: object) -> None:
    pass


def epoch(run: Trainer, number: int, captured: bool) -> cuda_graphs.Step:
    """One epoch of six steps; returns what made them."""
    run.module.train()
    torch.manual_seed(number)
    advance = (
        run.step_function(number)
        if captured
        else lambda index: run.update(run.make_batch(index, number))
    )
    for step, index in enumerate(run.epoch_batches()[:6]):
        run.set_learning_rates(12 * number + step)
        advance(index)
    return advance


@pytest.mark.parametrize("name", methods.builtin())
def test_a_captured_step_is_the_step_as_written(name: str, tmp_path: Path) -> None:
    """After two epochs, replayed from the third step on, or from the third of each, weights, buffers and averages agree."""
    one, other = (trainer(tmp_path, methods.load(name)()) for _ in range(2))
    for number in range(2):
        advance = epoch(one, number, captured=True)
        assert isinstance(advance, cuda_graphs.CapturedStep)
        assert advance.graph is not None, "the second step waited for the device"
        epoch(other, number, captured=False)
    a, b = (
        run.module.state_dict() | dict(run.averages["ema"].named_parameters())
        for run in (one, other)
    )
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4, equal_nan=True, msg=key)


@pytest.mark.parametrize(("name", "depends"), [("rslad", False), ("igdm", True)])
def test_a_step_is_captured_anew_where_it_depends_on_its_epoch(
    name: str, depends: bool, tmp_path: Path
) -> None:
    run = trainer(tmp_path, methods.load(name)())
    first, second = (epoch(run, number, captured=True) for number in range(2))
    assert (first is not second) == depends


def test_a_run_falls_and_resumes(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    whole = trainer(tmp_path / "whole", methods.load("rslad")())
    whole.fit(lambda row, _: rows.append(row), ignore)
    assert whole.training_path == ["captured"]
    assert rows[-1]["train/kl_adv"] < rows[0]["train/kl_adv"]

    def kill(stage: str, done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "killed", methods.load("rslad")()).fit(ignore, kill)
    again: list[dict[str, float]] = []
    trainer(tmp_path / "killed", methods.load("rslad")()).fit(
        lambda row, _: again.append(row), ignore
    )
    assert again[-1]["train/kl_adv"] == pytest.approx(rows[-1]["train/kl_adv"], rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["rslad", "gacd"])
def test_compiled(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss after three epochs is about that of the run as written, and both checkpoints can be read."""
    ends = []
    for pays in (10**9, 1):
        monkeypatch.setattr("bench.training.trainer.MIN_IMAGES_TO_COMPILE", pays)
        rows: list[dict[str, float]] = []
        run = trainer(tmp_path / str(pays), methods.load(name)(), precision=precision)
        run.fit(lambda row, _, rows=rows: rows.append(row), ignore)
        assert run.training_path == ["bf16"] * (precision == "bf16") + ["compiled"] * (
            pays == 1
        ) + ["captured"]
        checkpoint.load(tmp_path / str(pays) / "best.pt", "resnet8-w8", DATA.info)
        ends.append(sum(value for key, value in rows[-1].items() if key.startswith("train/")))
    assert ends[1] == pytest.approx(ends[0], rel=0.1)


def test_what_cannot_be_compiled_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.training.trainer.MIN_IMAGES_TO_COMPILE", 1)
    run = trainer(tmp_path, methods.load("kdiga")())
    run.fit(ignore, ignore)
    assert run.training_path == ["not compiled (RuntimeError)", "captured"]


def test_what_waits_is_not_captured(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Peeks(type(methods.load("pgd_at")())):  # type: ignore[misc]
        def after_step(self, nets: object, batch: object) -> None:
            assert next(nets.student.parameters()).sum().item() != 0  # type: ignore[attr-defined]

    run = trainer(tmp_path, Peeks())
    run.fit(ignore, ignore)
    assert run.training_path == []


def test_compiled_attacks_find_the_same_images(tmp_path: Path) -> None:
    """In double precision, but for signs of vanishing gradients."""
    run = trainer(tmp_path, methods.load("rslad")())
    net = run.module.nets.student.double()
    x, y = (
        torch.rand(16, 1, 8, 8, device="cuda", dtype=torch.float64),
        torch.arange(16, device="cuda") % 10,
    )
    found = []
    for compiled in (False, True):
        if compiled:
            assert compiling.compile_networks(run.module.nets, lambda: net(x).sum()) == "compiled"
        found.append(pgd(net, x, ce(y), Budget(0.15, 0.06, 3), start="none"))
    assert found[0].ne(found[1]).float().mean() < 1e-3


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Over 1,000 steps, after an epoch to settle."""
    run = trainer(tmp_path, methods.load("gacd")())
    epoch(run, 0, captured=True)
    held = []
    for number in range(1, 3):
        advance = run.step_function(number)
        for _ in range(84):
            for index in run.epoch_batches()[:6]:
                advance(index)
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert held[1] <= held[0] * 1.001


def test_verdicts_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    net = models.build("resnet8-w4", DATA.info).eval()
    x, y = augmentation.to_float(DATA.test.x), DATA.test.y
    names = ["fgsm", "pgd20", "aa"]
    here, there = (
        attacks.evaluate(net.to(d), x.to(d), y.to(d), names, eps=0.02) for d in ("cpu", "cuda")
    )
    for name in names:
        assert here.robust[name].ne(there.robust[name]).float().mean() <= 0.05, name


@pytest.mark.e2e
def test_a_whole_run(tmp_path: Path) -> None:
    words = [
        "run",
        "--suite",
        "digits",
        "--method",
        "natural",
        "--student",
        "resnet8-w4",
        "--epochs",
        "2",
    ]
    words += ["--seeds", "0", "--device", "cuda"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "clean" in done.stderr + done.stdout
