"""Runs recorded as the program records them, but for the attacks: training is real and short, accuracies are given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.datasets import loading
from bench.execution import job as cell_module
from bench.execution import plan
from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun
from bench.protocol.options import RunOptions
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


def cell(method: str = "natural", seed: int = 0, **changes: Any) -> PlannedRun:
    """A student of `digits` with one epoch on few images."""
    options = RunOptions(
        method=method,
        student="resnet8-w4",
        seeds=str(seed),
        epochs=1,
        limit_train=128,
        limit_test=8,
    )
    return dataclasses.replace(plan.plan_runs(options, {})[-1], **changes)


def shop(root: Path) -> RunContext:
    return RunContext(
        TrackingStore(root), torch.device("cpu"), {"code_commit": "0123abc", "code_dirty": "true"}
    )


def execute(made: PlannedRun, place: RunContext, measured: dict[str, float] = MEASURED) -> str:
    """Carries the cell out; AutoAttack is for the checkpoint that the suite names, as in the program."""

    def evaluate(
        net: Any, spec: Any, test: Any, full: bool, *_: Any
    ) -> tuple[dict[str, float], dict[str, str]]:
        return {
            name: value for name, value in measured.items() if full or not name.startswith("aa")
        }, FLAGS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell_module, "evaluate_checkpoint", evaluate)
        images = loading.load_data("digits", "", made.spec.limit_train, made.spec.limit_test)
        return cell_module.run_job(made, place, images, 1.0, lambda *_: None)
