"""Runs recorded as the program records them: training is real and short, accuracies are fixed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli.options import Run
from bench.datasets import data
from bench.execution import cell as cell_module
from bench.execution import plan
from bench.execution.cell import Workshop
from bench.execution.plan import Cell
from bench.tracking.track import Store

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


def cell(method: str = "natural", seed: int = 0, **changes: Any) -> Cell:
    """A student of `digits` with one epoch on few images."""
    options = Run(
        method=method,
        student="resnet8-w4",
        seeds=str(seed),
        epochs=1,
        limit_train=128,
        limit_test=8,
    )
    return dataclasses.replace(plan.plan(options, {})[-1], **changes)


def shop(root: Path) -> Workshop:
    return Workshop(
        Store(root), torch.device("cpu"), {"code_commit": "0123abc", "code_dirty": "true"}
    )


def execute(made: Cell, place: Workshop, measured: dict[str, float] = MEASURED) -> str:
    """Execute a run; AutoAttack judges the checkpoint that the suite names, as in the program."""

    def evaluate(
        net: Any, spec: Any, test: Any, full: bool, *_: Any
    ) -> tuple[dict[str, float], dict[str, str]]:
        return {
            name: value for name, value in measured.items() if full or not name.startswith("aa")
        }, FLAGS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell_module, "evaluate", evaluate)
        images = data.load("digits", "", made.spec.limit_train, made.spec.limit_test)
        return cell_module.execute(made, place, images, 1.0, lambda *_: None)
