"""Runs recorded as the program records them: real, short training and invented accuracies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.datasets import loading
from bench.datasets.splits import Split
from bench.execution import job, plan
from bench.execution.evaluation import CheckpointEvaluation
from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun
from bench.protocol.options import RunOptions
from bench.system.progress import Progress
from bench.tracking.claims import HeldClaim
from bench.tracking.store import TrackingStore

# Of 8 images.
MEASURED = {
    "clean": 0.875,
    "fgsm": 0.75,
    "pgd20": 0.625,
    "cw_inf": 0.625,
    "aa": 0.5,
    "worst": 0.5,
}
FLAGS = {"pgd-far-above-aa": "pgd20 62.5%, AutoAttack 50%"}


def plan_student(method: str = "natural", seed: int = 0, **changes: Any) -> PlannedRun:
    """Plan a student of `digits` with one epoch on few images."""
    options = RunOptions(
        method=method,
        student="resnet8-w4",
        seeds=str(seed),
        epochs=1,
        limit_train=128,
        limit_test=8,
    )
    return dataclasses.replace(plan.plan_runs(options, {})[-1], **changes)


def make_context(root: Path) -> RunContext:
    code = {"code_commit": "0123abc", "code_dirty": "true"}
    return RunContext(TrackingStore(root), torch.device("cpu"), code)


def invent_evaluations(measured: dict[str, float]) -> Callable[..., CheckpointEvaluation]:
    """Return a function that evaluates any checkpoint to these accuracies.

    As in the program, only the full checkpoints get AutoAttack.
    """

    def evaluate(
        net: Any, spec: Any, checkpoint: str, test: Split, verdicts: Path, *_: Any
    ) -> CheckpointEvaluation:
        full = checkpoint in spec.full_checkpoints
        accuracy = {name: value for name, value in measured.items() if full or name != "aa"}
        images, survived = len(test.y), None
        # The first ones are classified rightly, and survive.
        wrong = torch.arange(images) >= accuracy["clean"] * images
        if "aa" in accuracy:
            survived = torch.arange(images) < accuracy["aa"] * images
            path = verdicts.with_name(f"{verdicts.name}_aa.npz")
            np.savez_compressed(path, robust_aa=survived.numpy())
        attacked = 0 if survived is None else images
        predictions = (test.y + wrong) % 10
        return CheckpointEvaluation(accuracy, images, attacked, {}, FLAGS, predictions, survived)

    return evaluate


def claimed(run: PlannedRun, context: RunContext) -> HeldClaim:
    """Claim a run that nobody else has."""
    held = context.claims(run).take(run.spec.id)
    assert held
    return held


def run_planned(run: PlannedRun, context: RunContext, measured: dict[str, float] = MEASURED) -> str:
    """Carry out a run with invented accuracies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "evaluate_checkpoint", invent_evaluations(measured))
        images = loading.load_data("digits", "", run.spec.limit_train, run.spec.limit_test)
        progress = Progress({1: (0.0, 0.0)}, 1)
        progress.start(1, run.label, run.spec.training.epochs)
        with claimed(run, context) as held:
            return job.run_job(run, context, held, images, 1.0, progress)
