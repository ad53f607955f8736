"""Runs recorded as the program records them: real, short training and invented accuracies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.datasets import loading
from bench.execution import job, plan
from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun
from bench.protocol.options import RunOptions
from bench.system.progress import Progress
from bench.tracking.store import TrackingStore

MEASURED = {
    "n": 8.0,
    "clean": 0.9,
    "fgsm": 0.75,
    "pgd20": 0.625,
    "cw_inf": 0.625,
    "aa": 0.5,
    "aa_n": 8.0,
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


def run_planned(run: PlannedRun, context: RunContext, measured: dict[str, float] = MEASURED) -> str:
    """Carry out a run; as in the program, only the full checkpoints get AutoAttack."""
    without_autoattack = {}
    for name, value in measured.items():
        if not name.startswith("aa"):
            without_autoattack[name] = value

    def evaluate(
        net: Any, spec: Any, test: Any, full: bool, *_: Any
    ) -> tuple[dict[str, float], dict[str, str]]:
        return dict(measured if full else without_autoattack), FLAGS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "evaluate_checkpoint", evaluate)
        images = loading.load_data("digits", "", run.spec.limit_train, run.spec.limit_test)
        progress = Progress([(0.0, 0.0)])
        progress.start(run.label, run.spec.training.epochs)
        return job.run_job(run, context, images, 1.0, progress)
