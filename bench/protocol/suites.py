"""Benchmark suites: versioned constants that state a whole protocol. No torch here.

A change of any number that can alter a result is a new version; old records keep theirs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen

from bench.system.registry import Registry
from leaderboards.schema.fields import Norm
from leaderboards.schema.spec import Count, Training

# AutoAttack judges the best checkpoint, which ranks, on `limit_aa` images, and any other on no more
# than these first ones: enough to tell robust overfitting.
LIMIT_AA_OTHERS = 1_000

# Fields of a suite that a run records as parameters of the same name.
RECORDED_FIELDS = (
    *("norm", "eps", "inner_step", "inner_steps", "attacks"),
    *("limit_train", "limit_val", "limit_test", "limit_aa"),
)

# Values of a suite file outside these ranges are refused.
Pixels = Annotated[float, Gt(0)]
Names = Annotated[tuple[str, ...], MinLen(1)]


@dataclass(frozen=True)
class Teacher:
    """A teacher to train on first use: a run of a teacher-free method.

    limit_aa: AutoAttack on the first test images only; None takes the suite's number.
    """

    arch: str
    method: str
    training: Training
    limit_aa: Count | None = None


@dataclass(frozen=True)
class Row:
    """A method of a suite's own grid, with the hyper-parameters that are not its defaults."""

    method: str
    hyper: dict[str, bool | int | float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """One protocol: data, networks, threat model, training, evaluation, seeds.

    teachers: by role; methods distil from "robust" unless told otherwise. eps, inner_step: in
    `norm` and pixel units of [0, 1]; eps and norm for training and evaluation. full_checkpoints:
    those that get every attack; the others get all but AutoAttack. limit_...: the first images of a
    split; limit_aa: test images for AutoAttack, LIMIT_AA_OTHERS at most for checkpoints other than
    best. cpu_time: about how long one method takes on two CPU cores, all rows of a suite that has
    them; empty for a suite that is for a GPU. rows: what `run` without `--method` trains.
    """

    name: str
    version: Annotated[int, Ge(1), Le(999_999)]
    about: str
    datasets: Names
    students: Names
    teachers: dict[str, Teacher]
    training: Training
    eps: Pixels
    inner_step: Pixels
    inner_steps: Count
    norm: Norm = "Linf"
    attacks: Names = ("fgsm", "pgd20", "pgd20_trades", "cw_inf", "aa")
    full_checkpoints: Names = ("best",)
    limit_train: Count | None = None
    limit_val: Count | None = None
    limit_test: Count | None = None
    limit_aa: Count | None = None
    seeds: Annotated[tuple[Annotated[int, Ge(0), Le(2**63 - 1)], ...], MinLen(1)] = (0,)
    cpu_time: str = ""
    rows: tuple[Row, ...] = ()

    @property
    def id(self) -> str:
        """Name and version, "digits@3"."""
        return f"{self.name}@{self.version}"


def teacher_pair(arch: str, training: Training, limit_aa: int | None = None) -> dict[str, Teacher]:
    """Return a robust and a natural teacher of one architecture."""
    methods = {"robust": "trades", "natural": "natural"}
    return {role: Teacher(arch, name, training, limit_aa) for role, name in methods.items()}


QUICK = Training(epochs=30, batch=64, lr=0.2, schedule="onecycle", ema_decay=0.98)

DIGITS = Suite(
    name="digits",
    version=3,
    about="scikit-learn's 8x8 scanned digits, two tiny students: "
    "nothing to download, minutes on a laptop",
    datasets=("digits",),
    students=("resnet8-w4", "resnet8-w8"),
    teachers=teacher_pair("resnet8-w16", QUICK, limit_aa=100),
    training=replace(QUICK, epochs=36),
    eps=0.15,
    inner_step=0.06,
    inner_steps=5,
    cpu_time="minutes",
)

MINI = Training(epochs=10, lr=0.1, schedule="onecycle", ema_decay=0.99)

CIFAR_MINI = Suite(
    name="cifar-mini",
    version=3,
    about="10,000 training and 1,000 test images of CIFAR-10, a small student, three seeds: "
    "half an hour on two CPU cores",
    datasets=("cifar10",),
    students=("resnet8-w16-s2",),
    teachers=teacher_pair("resnet14-w16-s2", MINI),
    training=MINI,
    eps=8 / 255,
    inner_step=2.5 / 255,
    inner_steps=5,
    limit_train=10_000,
    limit_val=500,
    limit_test=1_000,
    # More seeds can be added later, images cannot.
    limit_aa=1_000,
    seeds=(0, 1, 2),
    cpu_time="half an hour",
)

LONG = Training(epochs=200, milestones=(0.5, 0.75), ema_decay=0.9995)

CIFAR = Suite(
    name="cifar",
    version=3,
    about="CIFAR-10 and CIFAR-100 in full, ResNet-18 and MobileNetV2, 200 epochs, "
    "ResNet-18 teacher: for a GPU",
    datasets=("cifar10", "cifar100"),
    students=("resnet18", "mobilenetv2"),
    teachers=teacher_pair("resnet18", LONG),
    training=LONG,
    eps=8 / 255,
    inner_step=2 / 255,
    inner_steps=10,
    full_checkpoints=("best", "last"),
)

FAST = Training(epochs=30, schedule="onecycle", ema_decay=0.999)

CIFAR_FAST = replace(
    CIFAR,
    name="cifar-fast",
    about="the cifar suite in 30 epochs with a one-cycle schedule: for a GPU",
    teachers=teacher_pair("resnet18", FAST),
    training=FAST,
    full_checkpoints=("best",),
    limit_aa=2_000,
)

SPRINT = Training(epochs=15, batch=512, lr=0.2, schedule="onecycle", ema_decay=0.99)

CIFAR_SPRINT = replace(
    CIFAR,
    name="cifar-sprint",
    version=1,
    about="CIFAR-10 in full, ResNet-18, 15 epochs in batches of 512: "
    "made for minutes on a large GPU",
    datasets=("cifar10",),
    students=("resnet18",),
    teachers=teacher_pair("resnet18", SPRINT),
    training=SPRINT,
    inner_step=2.5 / 255,
    inner_steps=5,
    full_checkpoints=("best",),
    limit_aa=1_000,
)

STL = replace(
    CIFAR,
    name="stl",
    version=2,
    about="STL-10, 96x96 images, 4,500 of them labelled for training: for a GPU",
    datasets=("stl10",),
    full_checkpoints=("best",),
)

# Each assumption of the reconstruction, changed alone against the form of the paper's figure, which
# is the default. An epoch of digits takes 1,216 images: a queue of 4,096 holds them three times or
# four, as they were embedded in the last epochs, so it shows what age does. The last two rows are
# the former default, and the same without weights, which is crd_adv.
GACD_ROWS = (
    Row("gacd"),
    Row("gacd", {"symmetric": True}),
    Row("gacd", {"teacher_input": "clean"}),
    Row("gacd", {"weight": "none"}),
    Row("gacd", {"weight": "indicator"}),
    Row("gacd", {"weigh": "positive"}),
    Row("gacd", {"bank": 1024}),
    Row("gacd", {"bank": 4096}),
    Row("gacd", {"tau": 0.1}),
    Row("gacd", {"tau": 0.5}),
    Row("gacd", {"two_stage": True}),
    Row("gacd", {"inner": "feature"}),
    Row("gacd", {"symmetric": True, "teacher_input": "clean"}),
    Row("crd_adv"),
)

GACD_ABLATION = replace(
    DIGITS,
    name="gacd-ablation",
    version=1,
    about="GACD's assumptions on digits, one changed at a time: rows of its own, no --method",
    students=("resnet8-w8",),
    seeds=(0, 1, 2),
    cpu_time="an hour",
    rows=GACD_ROWS,
)

GACD_ABLATION_CIFAR = replace(
    CIFAR_MINI,
    name="gacd-ablation-cifar",
    version=1,
    about="the rows of gacd-ablation on cifar-mini's images, networks and training",
    seeds=(0,),
    cpu_time="two hours",
    rows=GACD_ROWS,
)

DIGITS_HALVES = replace(
    DIGITS,
    name="digits-halves",
    version=1,
    about="the digits 0 to 4, to train networks that are then put to 5 to 9: seconds each",
    datasets=("digits-0-4",),
    students=("resnet8-w8",),
    attacks=("fgsm", "pgd20", "aa"),
    limit_aa=100,
    seeds=(0, 1, 2),
)

DIGITS_MODELS = replace(
    DIGITS,
    name="digits-models",
    version=1,
    about="digits with students of three families of networks, for teachers of several: "
    "`--teacher wrn10-2`",
    students=("resnet8-w8", "preactresnet18-w4", "wrn10-1"),
    seeds=(0, 1, 2),
)

CIFAR_MINI_HALVES = replace(
    CIFAR_MINI,
    name="cifar-mini-halves",
    version=1,
    about="CIFAR-10's classes 0 to 4, to train networks that are then put to 5 to 9: "
    "minutes on two CPU cores",
    datasets=("cifar10-0-4",),
    attacks=("fgsm", "pgd20", "aa"),
    limit_train=5_000,
    limit_val=250,
    limit_test=500,
    limit_aa=200,
    seeds=(0,),
    cpu_time="minutes",
)

ALL = (
    *(DIGITS, CIFAR_MINI, CIFAR, CIFAR_FAST, CIFAR_SPRINT, STL),
    *(GACD_ABLATION, GACD_ABLATION_CIFAR),
    *(DIGITS_HALVES, DIGITS_MODELS, CIFAR_MINI_HALVES),
)
SUITES = {suite.name: suite for suite in ALL}
# Packages add suites: name = "package.module:SUITE".
REGISTRY = Registry("suite", Suite, "bench.suites", SUITES)


def protocols() -> dict[str, dict[str, str]]:
    """Return by id ("digits@3") what a student of each suite records unless told otherwise."""
    return {suite.id: recorded_parameters(suite) for suite in SUITES.values()}


def recorded_parameters(suite: Suite) -> dict[str, str]:
    """Return the parameters that a student of a suite records unless told otherwise."""
    parameters = {}
    for name, value in asdict(suite.training).items():
        parameters[f"training.{name}"] = str(value)
    for name in RECORDED_FIELDS:
        parameters[name] = str(getattr(suite, name))
    return parameters


def get(name: str) -> Suite:
    """Return the suite called `name`. Raise BenchError for one unknown or unusable."""
    return REGISTRY.get(name)


def default_eps(dataset: str) -> float:
    """Return the radius of the first suite that covers a data set, of `cifar` if none does."""
    for suite in SUITES.values():
        if dataset in suite.datasets:
            return suite.eps
    return CIFAR.eps
