"""The measures of `analyze`: what a student took over from its teacher, beside accuracy.

A measure is a number under `analysis/GROUP/NAME`, with what it was measured on as its last part,
among the metrics of a record. Matrices, lines and points of figures lie in its field `analysis`,
under the same names; a measure that could not be made is a gap, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ANALYSIS = "analysis/"
# A change of a measure's definition, or of its images, is a new version.
VERSION: Literal[1] = 1
# On what a measure is taken: test images as they are, and the student's own adversarial examples
# of them, PGD-20 at the suite's radius.
CLEAN, ADVERSARIAL = "clean", "adv"
VIEWS = {CLEAN: "clean", ADVERSARIAL: "adversarial"}
# Attacks that move features: name and share of the suite's radius.
FEATURE_ATTACKS = {"fgsm": 1.0, "pgd20": 1.0, "pgd20-half": 0.5}
FEATURE_ATTACK_LABELS = {"fgsm": "FGSM", "pgd20": "PGD-20", "pgd20-half": "PGD-20, half eps"}
# The layer before the classifier; others are "stage1", "stage2", ... from input to output.
PENULTIMATE = "features"
# How a network is put to another task.
PROBE = "probe"
TASK_MODES = {
    PROBE: "linear probe",
    "head": "head, plain",
    "head_adv": "head, adversarial",
    "whole": "fine-tuned, plain",
    "whole_adv": "fine-tuned, adversarial",
}
TASK_VIEWS = {"clean": "clean", "pgd20": "PGD-20"}
# Names of parts in the order of tables; others are sorted, and come last.
PARTS = (PENULTIMATE, *TASK_MODES, *VIEWS, *FEATURE_ATTACKS)
# What a measure was taken on, the most telling first: tables show one metric of a measure at first.
MAIN_PARTS = (ADVERSARIAL, "pgd20", "fgsm", "pgd20-half", CLEAN)


@dataclass(frozen=True)
class Measure:
    """One measure of a group. about: what it says, in a sentence.

    higher_is_closer: whether more of it is nearer to the claim that it tests; None for neither.
    percent: an accuracy.
    """

    name: str
    label: str
    about: str
    higher_is_closer: bool | None
    percent: bool = False


@dataclass(frozen=True)
class Group:
    """Measures that are shown on one page. claim: what they test, in our words."""

    name: str
    title: str
    claim: str
    measures: tuple[Measure, ...]


GROUPS = {
    group.name: group
    for group in (
        Group(
            "structure",
            "Structural knowledge",
            "The student captures the teacher's structural knowledge.",
            (
                Measure(
                    "correlation_gap",
                    "Correlation gap",
                    "Mean absolute difference, off the diagonal, between the correlations of the "
                    "classes' logits of student and teacher.",
                    False,
                ),
                Measure(
                    "cka",
                    "CKA",
                    "Linear centred kernel alignment of both features, from 0 to 1.",
                    True,
                ),
                Measure(
                    "procrustes",
                    "Procrustes distance",
                    "What remains between both features, centred and of unit norm, after the best "
                    "rotation: from 0, equal, to 1, orthogonal.",
                    False,
                ),
                Measure(
                    "prediction_agreement",
                    "Agreement of predictions",
                    "Cohen's kappa of both predictions: 0 by chance, 1 everywhere.",
                    True,
                ),
                Measure(
                    "error_agreement",
                    "Agreement of errors",
                    "Cohen's kappa of where both are right: 0 by chance, 1 everywhere.",
                    True,
                ),
            ),
        ),
        Group(
            "features",
            "Robust features",
            "The student's features stay robust under attack.",
            (
                Measure(
                    "cosine",
                    "Cosine under attack",
                    "Mean cosine between the features of an image and of its adversarial example.",
                    True,
                ),
                Measure(
                    "distance",
                    "Distance under attack",
                    "Mean distance between these features, relative to the length of the image's.",
                    False,
                ),
                Measure(
                    "scatter",
                    "Class separation",
                    "Scatter of the features between classes over that within classes.",
                    True,
                ),
                Measure(
                    "class_mean",
                    "Nearest class mean",
                    "Accuracy of the nearest class mean of the training images' features.",
                    True,
                    percent=True,
                ),
            ),
        ),
        Group(
            "gradients",
            "Gradients and loss surface",
            "The student's loss behaves as the teacher's around an image.",
            (
                Measure(
                    "cosine",
                    "Gradient cosine",
                    "Mean cosine between the input gradients of both cross-entropies.",
                    True,
                ),
                Measure(
                    "distance",
                    "Gradient distance",
                    "Mean length of their difference over the sum of their lengths, from 0 to 1.",
                    False,
                ),
                Measure(
                    "sparsity",
                    "Gradient sparsity",
                    "Hoyer's sparsity of the student's input gradient: 0 if all pixels count "
                    "alike, 1 if one counts.",
                    None,
                ),
                Measure(
                    "attack_rise",
                    "Loss along the attack",
                    "How much the cross-entropy rises from an image to its adversarial example.",
                    False,
                ),
                Measure(
                    "random_rise",
                    "Loss along noise",
                    "How much it rises to a random corner of the same ball.",
                    False,
                ),
                Measure(
                    "area",
                    "Accuracy over eps",
                    "Mean accuracy under PGD-20 over radii from 0 to twice the suite's.",
                    True,
                    percent=True,
                ),
            ),
        ),
        Group(
            "transferability",
            "Transferability of attacks",
            "The student resists adversarial examples that were made on other networks.",
            (
                Measure(
                    "resists",
                    "Resists others",
                    "Mean accuracy on the adversarial examples of the other students.",
                    True,
                    percent=True,
                ),
                Measure(
                    "fools",
                    "Fools others",
                    "Share of the images that the other students classify rightly and that its "
                    "adversarial examples turn, on average.",
                    None,
                    percent=True,
                ),
                Measure(
                    "resists_teacher",
                    "Resists the teacher",
                    "Accuracy on the teacher's adversarial examples.",
                    True,
                    percent=True,
                ),
                Measure(
                    "fools_teacher",
                    "Fools the teacher",
                    "Share of the images that the teacher classifies rightly and that its "
                    "adversarial examples turn.",
                    None,
                    percent=True,
                ),
            ),
        ),
        Group(
            "tasks",
            "Transfer to other tasks",
            "Robust features serve other tasks.",
            (
                Measure(
                    "accuracy",
                    "Accuracy on another task",
                    "Accuracy on the test images of another task, attacked end to end.",
                    True,
                    percent=True,
                ),
            ),
        ),
    )
}

# In `Analysis.against` a teacher has as its key the first digits of its checkpoint's sha256.
TEACHER_KEY_DIGITS = 16

STRUCTURE, FEATURES, GRADIENTS, TRANSFERABILITY, TASKS = GROUPS

# Names of matrices, lines and points.
CORRELATION = "structure/correlation"  # + /student, /teacher and /clean, /adv
BY_EPS, BY_STEPS = "gradients/accuracy_by_eps", "gradients/accuracy_by_steps"
LOSS_ATTACK, LOSS_RANDOM = "gradients/loss_along_attack", "gradients/loss_along_random"
TSNE = "features/tsne"  # + /clean, /adv

Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_@/:. -]{1,120}$")]
Reason = Annotated[str, Field(max_length=500)]


class Analysis(BaseModel):
    """What `analyze` keeps of a run beside its numbers.

    images: the first test images that were used. teacher_sha256: of the checkpoint that the student
    was compared with, "" for none; its_own: whether it distilled from it. matrices: rows of
    numbers. lines: (x, y) pairs. points: (x, y, class) of images. against: accuracy on the
    adversarial examples of each student of the same suite, data set, model and seed, itself among
    them, by its spec's id, and of their teachers, by the first digits of their sha256. gaps: why a
    group or measure is missing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    version: Literal[1]
    images: Annotated[int, Field(gt=0, le=100_000)]
    teacher_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    its_own: bool = False
    matrices: dict[Name, list[list[float]]] = {}
    lines: dict[Name, list[tuple[float, float]]] = {}
    points: dict[Name, list[tuple[float, float, int]]] = {}
    against: dict[Hex16, Annotated[float, Field(ge=0, le=1)]] = {}
    gaps: dict[Name, Reason] = {}


def measure_name(group: str, measure: str, *parts: str) -> str:
    """Return the metric of a measure: "analysis/structure/cka/features/adv"."""
    return ANALYSIS + "/".join((group, measure, *parts))


def task_name(dataset: str, mode: str, view: str) -> str:
    """Return the metric of an accuracy on another task."""
    return measure_name("tasks", "accuracy", dataset, mode, view)


def split_name(metric: str) -> tuple[Group, Measure, tuple[str, ...]] | None:
    """Return group, measure and what it was measured on; None for another metric."""
    if not metric.startswith(ANALYSIS):
        return None
    group_name, _, rest = metric.removeprefix(ANALYSIS).partition("/")
    name, *parts = rest.split("/")
    group = GROUPS.get(group_name)
    measures = [measure for measure in group.measures if measure.name == name] if group else []
    return (group, measures[0], tuple(parts)) if group and measures else None


def _split_known(metric: str) -> tuple[Group, Measure, tuple[str, ...]]:
    parts = split_name(metric)
    assert parts, metric
    return parts


def part_label(part: str) -> str:
    """Return how pages call what a measure was taken on: a layer, a view, an attack, a task."""
    labels = VIEWS | FEATURE_ATTACK_LABELS | TASK_MODES
    labels |= {PENULTIMATE: "features", "pgd20": "PGD-20"}
    if part.startswith("stage"):
        return f"stage {part.removeprefix('stage')}"
    return labels.get(part, part)


def measure_label(metric: str) -> str:
    """Return the label of a measure's metric: "CKA, features, adversarial"."""
    _, measure, parts = _split_known(metric)
    return ", ".join((measure.label, *map(part_label, parts)))


def format_measure(metric: str, value: float) -> str:
    """Format a measure: "81.2 %" for an accuracy, "0.873" for other numbers."""
    parts = split_name(metric)
    percent = parts is not None and parts[1].percent
    return f"{100 * value:.1f} %" if percent else f"{value:.3f}"


def metrics_of_group(values: Mapping[str, float] | Iterable[str], group: str) -> list[str]:
    """Return the metrics of a group among names, in the order of its measures and of PARTS."""
    order = [measure.name for measure in GROUPS[group].measures]
    names = []
    for name in values:
        parts = split_name(name)
        if parts and parts[0].name == group:
            on = [(PARTS.index(part) if part in PARTS else len(PARTS), part) for part in parts[2]]
            names.append((order.index(parts[1].name), on, name))
    return [name for _, _, name in sorted(names)]


def main_metrics(names: Iterable[str], group: str) -> list[str]:
    """Return the metrics of a group that tables show at first, among names.

    One of each measure, on the layer before the classifier and under attack; for other tasks the
    linear probes.
    """
    chosen: dict[tuple[str, ...], str] = {}
    orders: dict[tuple[str, ...], tuple[bool, int]] = {}
    for metric in metrics_of_group(names, group):
        _, measure, parts = _split_known(metric)
        if group == TASKS and PROBE not in parts:
            continue
        key = parts if group == TASKS else (measure.name,)
        order = (
            any(part.startswith("stage") for part in parts),
            min((MAIN_PARTS.index(part) for part in parts if part in MAIN_PARTS), default=0),
        )
        if key not in orders or order < orders[key]:
            chosen[key], orders[key] = metric, order
    return [*chosen.values()]


def probe_pairs(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return (data set, clean, robust) of the linear probes that were judged on both."""
    present = set(names)
    pairs = []
    for metric in metrics_of_group(present, TASKS):
        _, _, parts = _split_known(metric)
        dataset, *rest = parts
        robust = task_name(dataset, PROBE, "pgd20")
        if rest == [PROBE, CLEAN] and robust in present:
            pairs.append((dataset, metric, robust))
    return sorted(pairs)


def gap_reason(gaps: Mapping[str, str], metric: str) -> str:
    """Return why a metric is missing, "" where no gap says it.

    A gap is of all metrics that have its parts: "structure", "structure/adv", "structure/cka".
    """
    group, *parts = metric.removeprefix(ANALYSIS).split("/")
    reasons = {}
    for name, reason in gaps.items():
        gap_group, *gap_parts = name.split("/")
        if gap_group == group and set(gap_parts) <= set(parts):
            reasons[len(gap_parts)] = reason
    return reasons[max(reasons)] if reasons else ""
