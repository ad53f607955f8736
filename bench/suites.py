"""Benchmark suites: versioned constants that state a whole protocol. No torch here.

A change of any number that can alter a result is a new version; old records keep theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.errors import unknown


@dataclass(frozen=True)
class Training:
    """How every network of a suite is trained, teacher and students alike."""

    epochs: int
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["multistep", "onecycle"] = "multistep"
    milestones: tuple[float, ...] = (0.5, 0.75)  # fractions of the epochs; the rate falls tenfold at each
    averaging: Literal["none", "ema", "swa"] = "none"
    ema_decay: float = 0.999
    swa_start: float = 0.5  # fraction of the epochs
    validate_every: int = 1  # epochs


@dataclass(frozen=True)
class Teacher:
    """A teacher to train on first use: a run of a teacher-free method."""

    arch: str
    method: str
    training: Training


@dataclass(frozen=True)
class Suite:
    """One protocol: data, networks, threat model, training, evaluation, seeds."""

    name: str
    version: int
    about: str
    datasets: tuple[str, ...]
    students: tuple[str, ...]
    teachers: dict[str, Teacher]  # by role; "robust" is the one that methods distil from unless told otherwise
    training: Training
    eps: float  # l-inf radius, pixel units of [0, 1], for training and evaluation
    inner_step: float
    inner_steps: int
    attacks: tuple[str, ...] = ("fgsm", "pgd20", "pgd20_trades", "cw_inf", "aa")
    limit_train: int | None = None
    limit_test: int | None = None
    limit_aa: int | None = None  # AutoAttack on the first so many test images
    seeds: tuple[int, ...] = (0,)

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


MINUTE = Training(epochs=30, lr=0.1, schedule="onecycle")

DIGITS = Suite(
    name="digits",
    version=1,
    about="scikit-learn's 8x8 scanned digits: no download, two tiny students, minutes on a laptop",
    datasets=("digits",),
    students=("resnet8-w4", "resnet8-w8"),
    teachers={
        "robust": Teacher("resnet8-w32", "trades", MINUTE),
        "natural": Teacher("resnet8-w32", "natural", MINUTE),
    },
    training=MINUTE,
    eps=0.15,
    inner_step=0.0375,
    inner_steps=10,
)

SUITES = {suite.name: suite for suite in (DIGITS,)}


def get(name: str) -> Suite:
    """The suite called `name`; raises UsageError for an unknown one."""
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return SUITES[name]
