"""Runs recorded as the program records them: real, short training and invented accuracies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.datasets import loading
from bench.execution import job, plan
from bench.execution.evaluation import CheckpointEvaluation
from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun
from bench.protocol.options import RunOptions
from bench.system.progress import Progress
from bench.tracking.store import TrackingStore
from leaderboards.schema import metrics

ACCURACY = {
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


def invent_evaluation(
    labels: Tensor, accuracy: dict[str, float], full: bool = True
) -> CheckpointEvaluation:
    """Return an evaluation with these accuracies; only a full one has AutoAttack."""
    accuracy = {name: value for name, value in accuracy.items() if full or name != "aa"}
    images = len(labels)
    right = torch.arange(images) < round(accuracy["clean"] * images)
    survived = None
    if "aa" in accuracy:
        survived = torch.arange(images) < round(accuracy["aa"] * images)
    return CheckpointEvaluation(
        accuracy,
        images,
        0 if survived is None else images,
        {metrics.EVAL_SECONDS: 1.5},
        FLAGS,
        torch.where(right, labels, 1 + labels),
        survived,
    )


def run_planned(run: PlannedRun, context: RunContext, accuracy: dict[str, float] = ACCURACY) -> str:
    """Carry out a run; as in the program, only the full checkpoints get AutoAttack."""
    images = loading.load_data("digits", "", run.spec.limit_train, run.spec.limit_test)

    def evaluate(
        net: Any, spec: Any, test: Any, full: bool, verdicts: Path, *_: Any
    ) -> CheckpointEvaluation:
        evaluation = invent_evaluation(test.y, accuracy, full)
        if evaluation.survived is not None:
            path = verdicts.with_name(f"{verdicts.name}_aa.npz")
            np.savez_compressed(path, robust_aa=evaluation.survived.numpy())
        return evaluation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "evaluate_checkpoint", evaluate)
        progress = Progress([(0.0, 0.0)])
        progress.start(run.label, run.spec.training.epochs)
        return job.run_job(run, context, images, 1.0, progress)
