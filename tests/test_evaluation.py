"""How many images AutoAttack sees of each checkpoint, and what is recorded and shown of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
import torch
from torch import Tensor

import attacks
from attacks import ATTACKS
from bench.datasets import loading
from bench.execution import cost, job
from bench.execution.evaluation import count_attacked
from bench.execution.plan import PlannedRun, plan_runs
from bench.protocol import suites
from bench.protocol.options import RunOptions
from bench.system.progress import Progress
from bench.tracking import note
from leaderboards.read.records import read_record
from leaderboards.schema.record import Record
from methods import inner

IMAGES, FEW = 24, 10


def plan_first(suite: str) -> PlannedRun:
    """Return the first student of a suite."""
    return plan_runs(RunOptions(method="natural", suite=suite), {})[-1]


@pytest.mark.parametrize(
    ("suite", "best", "others"),
    [
        ("digits", 10_000, {}),
        ("cifar", 10_000, {"last": 1_000}),
        ("cifar-fast", 2_000, {}),
        ("cifar-sprint", 1_000, {}),
        ("stl", 10_000, {}),
    ],
)
def test_autoattack_judges_the_best_checkpoint_on_more_images(
    suite: str, best: int, others: dict[str, int]
) -> None:
    spec = plan_first(suite).spec
    counts = {name: count_attacked(spec, name, 10_000) for name in ("best", "last", "ema", "swa")}
    assert counts == {"best": best, "last": 0, "ema": 0, "swa": 0} | others
    assert count_attacked(spec, "last", 300) == (300 if others else 0)
    limited = dataclasses.replace(spec, limit_aa=20)
    assert count_attacked(limited, "last", 10_000) == (20 if others else 0)
    assert count_attacked(dataclasses.replace(spec, attacks=("fgsm",)), "best", 10_000) == 0


def test_the_estimate_counts_the_images_that_autoattack_sees() -> None:
    run = plan_first("cifar")
    without = dataclasses.replace(run, spec=dataclasses.replace(run.spec, full_checkpoints=()))
    extra = cost.evaluation_passes(run, 10_000) - cost.evaluation_passes(without, 10_000)
    assert extra == ATTACKS["aa"].passes * (10_000 + 1_000)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """A run whose last checkpoint AutoAttack judges too, and the folder of its verdicts."""
    options = RunOptions(method="natural", student="resnet8-w4", epochs=3, limit_test=IMAGES)
    (planned,) = plan_runs(options, {})
    changes = {"attacks": ("fgsm", "aa"), "full_checkpoints": ("best", "last")}
    spec = dataclasses.replace(planned.spec, **changes, eps=0.05, inner_step=0.02)
    context = records.make_context(tmp_path_factory.mktemp("evaluated"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "LIMIT_AA_OTHERS", FEW)
        patch.setitem(ATTACKS, "aa", ATTACKS["pgd20"])
        images = loading.load_data("digits", "", spec.limit_train, IMAGES)
        progress = Progress({1: (0.0, 0.0)}, 1)
        progress.start(1, planned.label, spec.training.epochs)
        run = dataclasses.replace(planned, spec=spec)
        with records.claimed(run, context) as held:
            job.run_job(run, context, held, images, 1.0, progress)
    (path,) = context.store.records.iterdir()
    (verdicts,) = context.root.glob("artifacts/*/artifacts/verdicts")
    return read_record(path), verdicts


L2_SUITE = """
name = "l2"
base = "digits"
students = ["resnet8-w4"]
norm = "L2"
eps = 0.6
inner_step = 0.3
attacks = ["pgd20"]
training.epochs = 1
limit_train = 128
limit_test = 8
"""


def test_a_run_in_l2_knows_no_other_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In estimate, training, validation and evaluation."""
    (tmp_path / "l2.toml").write_text(L2_SUITE)
    inner_norms, norms = set(), set()
    start_noise, evaluate = inner._start_noise, attacks.evaluate

    def kept_noise(x: Tensor, budget: inner.Budget, start: inner.Start) -> Tensor:
        inner_norms.add(budget.norm)
        return start_noise(x, budget, start)

    def kept_evaluate(*arguments: Any, **settings: Any) -> attacks.Evaluation:
        norms.add(settings["norm"])
        return evaluate(*arguments, **settings)

    monkeypatch.setattr(inner, "_start_noise", kept_noise)
    monkeypatch.setattr(attacks, "evaluate", kept_evaluate)
    options = RunOptions(method="pgd_at", suite=str(tmp_path / "l2.toml"))
    (planned,) = plan_runs(options, {})
    cost.estimate_costs([planned], [], tmp_path, torch.device("cpu"))
    assert inner_norms == {"L2"}
    context = records.make_context(tmp_path)
    images = loading.load_data("digits", "", 128, 8)
    progress = Progress({1: (0.0, 0.0)}, 1)
    progress.start(1, planned.label, 1)
    with records.claimed(planned, context) as held:
        job.run_job(planned, context, held, images, 1.0, progress)
    assert inner_norms == norms == {"L2"}
    (path,) = context.store.records.iterdir()
    assert read_record(path).spec.norm == "L2"


def test_other_checkpoints_are_judged_on_the_first_images(recorded: tuple[Record, Path]) -> None:
    record, verdicts = recorded
    assert record.metrics["test/n"] == record.metrics["test/aa_n"] == IMAGES
    assert (record.metrics["test_last/n"], record.metrics["test_last/aa_n"]) == (IMAGES, FEW)
    assert not {"test_ema/aa", "test_ema/aa_n", "test_swa/aa"} & record.metrics.keys()
    with np.load(verdicts / "verdicts_last.npz") as file:
        by_gradients = file["robust_fgsm"]
    with np.load(verdicts / "verdicts_last_aa.npz") as file:
        autoattack = file["robust_aa"]
    assert (len(by_gradients), len(autoattack)) == (IMAGES, FEW)
    worst = (by_gradients[:FEW] & autoattack).mean()
    assert record.metrics["test_last/worst"] == pytest.approx(worst)
    assert record.metrics["test_last/aa"] == pytest.approx(autoattack.mean())


def test_readers_are_told_of_the_smaller_number(recorded: tuple[Record, Path]) -> None:
    record, _ = recorded
    text = f"{IMAGES} test images, AutoAttack and worst on the first {IMAGES}"
    assert f"{text}, of the last checkpoint on the first {FEW}. " in note.run_note(record, 0)


def test_the_drop_is_on_the_images_that_both_saw(recorded: tuple[Record, Path]) -> None:
    record, _ = recorded
    survived = record.survived[:FEW].mean()
    assert record.drop("aa") == pytest.approx(survived - record.metrics["test_last/aa"])
    assert np.isnan(record.drop("pgd20"))


@pytest.mark.parametrize(("workers", "seconds"), [(1, 60 + 40), (2, 60 + 20), (9, 60 + 10)])
def test_teachers_come_before_students_that_share_the_workers(workers: int, seconds: int) -> None:
    planned = plan_runs(RunOptions(method="kd", student="resnet8-w4", seeds="0,1,2,3"), {})
    costs = {"teacher": cost.Cost(50.0, 10.0, 1.0), "student": cost.Cost(8.0, 2.0, 1.0)}
    runs = [(run, costs[run.spec.role]) for run in planned]
    assert len(runs) == 5
    assert cost.seconds_side_by_side(runs, workers) == seconds
