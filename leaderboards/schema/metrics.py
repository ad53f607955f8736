"""The metrics of a run: what each name means, and how tables show its values.

Accuracies are fractions under `PREFIX/ATTACK`, with the prefix of their checkpoint; costs are
seconds, bytes and counts under `cost/`; `train/`, `monitor/`, `val/` and `lr` have a value for each
epoch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from leaderboards.schema.analysis import ANALYSIS, measure_label, split_name
from leaderboards.schema.checkpoints import BEST, CHECKPOINTS

Curve: TypeAlias = tuple[Sequence[int], Sequence[float]]  # epochs, values
Curves: TypeAlias = Mapping[str, Curve]  # of one run, by metric


@dataclass(frozen=True)
class Metric:
    """What a name stands for. A value times `scale` is shown in `unit`.

    higher_is_better: None where neither is.
    """

    name: str
    label: str
    unit: str
    scale: float = 1.0
    higher_is_better: bool | None = None

    @property
    def decimals(self) -> int:
        """How many are shown; a measure without a unit is a cosine, a distance or the like."""
        if self.unit in ("%", "min", "s"):
            return 1
        return 3 if self.name.startswith(ANALYSIS) else 0

    def format(self, value: float) -> str:
        """Format a value with its unit: "12.5 %", "3 MiB", "1,234"."""
        return f"{self.scale * value:,.{self.decimals}f} {self.unit}".rstrip()


TRAIN, VAL, COST = "train/", "val/", "cost/"
# What a method logs beside the terms of its loss.
MONITOR = "monitor/"
# By the prefix of their metrics, the best one first.
CHECKPOINT_LABELS = {
    checkpoint.metric_prefix: checkpoint.label for checkpoint in CHECKPOINTS.values()
}
TEST_PREFIXES = tuple(f"{prefix}/" for prefix in CHECKPOINT_LABELS)
METRIC_PREFIXES = (*TEST_PREFIXES, COST, VAL, ANALYSIS)

# In the order of tables, before other attacks.
ATTACK_LABELS = {
    "clean": "Clean",
    "aa": "AutoAttack",
    "worst": "Worst",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd20_trades": "PGD-20 (0.003)",
    "cw_inf": "CW-inf",
}
# Beside the accuracies of a checkpoint: on how many images, and on how many under AutoAttack.
COUNT_LABELS = {"n": "images", "aa_n": "images of AutoAttack"}


def attack_label(attack: str) -> str:
    """Return how tables name an attack: "PGD-100" for "pgd100", where no label is stated."""
    spelled = re.sub(r"([A-Z])(\d)", r"\1-\2", attack.upper().replace("_", "-"))
    return ATTACK_LABELS.get(attack, spelled)


def accuracy_name(attack: str, checkpoint: str = BEST) -> str:
    """Return the name of an accuracy or count on the test images, such as "test_last/pgd20"."""
    return f"{CHECKPOINTS[checkpoint].metric_prefix}/{attack}"


def describe_images(values: Mapping[str, float]) -> str:
    """Return on how many images the metrics of a run were measured, as text."""
    attacked = []
    for name, checkpoint in CHECKPOINTS.items():
        count = values.get(accuracy_name("aa_n", name))
        if count and (name == BEST or count != values.get(NUM_ATTACKED)):
            owner = "" if name == BEST else f"of the {checkpoint.label} checkpoint "
            attacked.append(f"{owner}on the first {count:,.0f}")
    text = f"{values.get(NUM_IMAGES, 0):,.0f} test images"
    return f"{text}, AutoAttack and worst {', '.join(attacked)}" if attacked else text


def attack_seconds(attack: str) -> str:
    """Return the name of the seconds that an attack took on all checkpoints."""
    return f"{COST}{attack}_seconds"


CLEAN, RANK_METRIC, WORST = accuracy_name("clean"), accuracy_name("aa"), accuracy_name("worst")
NUM_IMAGES, NUM_ATTACKED = accuracy_name("n"), accuracy_name("aa_n")
VAL_CLEAN, VAL_ROBUST = f"{VAL}clean", f"{VAL}robust"
TRAIN_LOSS, LEARNING_RATE = f"{TRAIN}loss", "lr"
TRAIN_SECONDS, EVAL_SECONDS = f"{COST}train_seconds", f"{COST}eval_seconds"
EVAL_FORWARDS, EVAL_BACKWARDS = f"{COST}eval_forwards", f"{COST}eval_backwards"
PEAK_BYTES, STUDENT_PASSES = f"{COST}peak_bytes", f"{COST}student_passes"
PARAMETERS, MULTIPLY_ADDS = f"{COST}parameters", f"{COST}multiply_adds"
TEACHER_PARAMETERS = f"{COST}teacher_parameters"
TEACHER_MULTIPLY_ADDS = f"{COST}teacher_multiply_adds"
# Derived from labels and verdicts, not recorded: of the classes' accuracies the lowest, and the
# standard deviation, under AutoAttack and clean. Records have no verdicts of other attacks.
CLASS = "class/"
WORST_CLASS, CLASS_SPREAD = f"{CLASS}worst", f"{CLASS}spread"
WORST_CLASS_CLEAN, CLASS_SPREAD_CLEAN = f"{WORST_CLASS}_clean", f"{CLASS_SPREAD}_clean"
CLASS_METRICS = WORST_CLASS, CLASS_SPREAD, WORST_CLASS_CLEAN, CLASS_SPREAD_CLEAN
# Derived from the runs of a row: the share of the teacher's robustness, the harmonic mean of clean
# and robust accuracy, and what the last checkpoint loses against the best.
KEPT, BALANCE, DROP = "row/kept", "row/balance", "row/drop"

METRICS = {
    metric.name: metric
    for metric in (
        Metric(TRAIN_SECONDS, "Train min", "min", 1 / 60, False),
        Metric(EVAL_SECONDS, "Evaluation", "min", 1 / 60, False),
        Metric(PEAK_BYTES, "Memory at most", "MiB", 2**-20, False),
        Metric(STUDENT_PASSES, "Student's passes for an image, each epoch", ""),
        Metric(EVAL_FORWARDS, "Images forward in evaluation", ""),
        Metric(EVAL_BACKWARDS, "Images backward in evaluation", ""),
        Metric(PARAMETERS, "Parameters", "", 1, False),
        Metric(MULTIPLY_ADDS, "Multiply-adds of an image", "", 1, False),
        Metric(TEACHER_PARAMETERS, "Parameters of the teacher", ""),
        Metric(TEACHER_MULTIPLY_ADDS, "Multiply-adds of the teacher", ""),
        Metric(WORST_CLASS, "Worst class", "%", 100, True),
        Metric(WORST_CLASS_CLEAN, "Worst class, clean", "%", 100, True),
        Metric(CLASS_SPREAD, "Spread over classes", "%", 100, False),
        Metric(CLASS_SPREAD_CLEAN, "Spread over classes, clean", "%", 100, False),
        Metric(KEPT, "Kept", "%", 100, True),
        Metric(BALANCE, "Balance", "%", 100, True),
        Metric(DROP, "Drop", "%", 100, False),
    )
}


def describe_metric(name: str) -> Metric:
    """Return what a name of a metric stands for."""
    if name in METRICS:
        return METRICS[name]
    if parts := split_name(name):
        _, measure, _ = parts
        unit, scale = ("%", 100.0) if measure.percent else ("", 1.0)
        return Metric(name, measure_label(name), unit, scale, measure.higher_is_closer)
    kind, _, attack = name.partition("/")
    label = attack_label(attack)
    if kind in CHECKPOINT_LABELS:
        if kind != CHECKPOINTS[BEST].metric_prefix:
            label = f"{label}, {CHECKPOINT_LABELS[kind]}"
        return Metric(name, label, "%", 100, True)
    if attack.endswith("_seconds"):
        attack = attack.removesuffix("_seconds")
        return Metric(name, attack_label(attack), "s", 1, False)
    return Metric(name, attack.replace("_", " "), "")


def column_name(metric: str) -> str:
    """Return the column of a metric in frames for people: "AutoAttack", "train seconds"."""
    if describe_metric(metric).unit == "%" or split_name(metric):
        return describe_metric(metric).label
    return metric.partition("/")[2].replace("_", " ")


def is_accuracy(name: str) -> bool:
    """Return whether a metric is an accuracy on test images, and no count of them."""
    return name.startswith(TEST_PREFIXES) and name.partition("/")[2] not in COUNT_LABELS


def sort_attacks(names: Iterable[str]) -> list[str]:
    """Sort the attacks among names: those of ATTACK_LABELS in its order, then the others."""
    measured = set(names).difference(COUNT_LABELS)
    attacks = [name for name in ATTACK_LABELS if name in measured]
    return attacks + sorted(measured.difference(ATTACK_LABELS))


def is_curve(name: str) -> bool:
    """Return whether a metric has a value for each epoch."""
    return name == LEARNING_RATE or name.startswith((TRAIN, MONITOR, VAL))
