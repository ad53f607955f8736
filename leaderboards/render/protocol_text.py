"""The protocol of a suite in words: as the suite states it, else as its runs recorded it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from leaderboards.schema.checkpoints import CHECKPOINTS
from leaderboards.schema.metrics import attack_label

Run: TypeAlias = Mapping[str, Any]  # a line of `collect`'s frame
NORM_NAMES = {"Linf": "l-infinity", "L2": "L2"}
FRACTION = re.compile(r"0\.\d{5,}")  # 8/255 has seventeen digits, 0.5 has one
# By topic: a parameter and what to say of its value.
PARAMETERS = {
    "Threat": {"norm": "{}", "eps": "eps {} in pixels of [0, 1]"},
    "Training": {
        "training.epochs": "{} epochs",
        "training.batch": "batches of {}",
        "training.schedule": "{} schedule",
        "training.lr": "learning rate {}",
        "training.averaging": "averages of the weights: {}",
    },
    "Inner attack": {"inner_steps": "{} steps", "inner_step": "of {}"},
    "Data": {"limit_train": "first {} training images", "limit_test": "first {} test images"},
    "Attacks": {"attacks": "{}"},
}
NAMES = [*chain.from_iterable(PARAMETERS.values())]
CHECKPOINT = (
    "the one with the best validation accuracy under PGD (clean, for methods without an inner "
    "attack); the test set is read once, at the end"
)


def describe_protocol(runs: Sequence[Run], stated: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (topic, sentence) pairs: what the suite states, and what its teachers do otherwise.

    stated: the suite's parameters. For one that it lacks counts what most students without a
    variant recorded; of teachers alone, what most of them did.
    """
    teachers = [run for run in runs if run["role"] == "teacher"]
    students = [run for run in runs if run["role"] != "teacher"] or teachers
    plain = [run for run in students if not run["variant"]] or students
    values = {name: _usual_value(plain, name) for name in NAMES} | {**stated}
    by_sentence: defaultdict[str, set[str]] = defaultdict(set)
    for run in teachers:
        recorded = recorded_values(run).items()
        changes = {name: value for name, value in recorded if value != values.get(name)}
        by_sentence[_sentence("Training", changes)].add(run["method"])
    by_sentence.pop("", None)
    lines = [f"{text} ({', '.join(sorted(names))})" for text, names in by_sentence.items()]
    seeds = sorted({run["seed"] for run in students} - {""}, key=lambda seed: (len(seed), seed))
    others = ("Teachers", "; ".join(lines)), ("Seeds", " / ".join(seeds))
    return _describe_settings(values, *others)


def describe_run(run: Run) -> list[tuple[str, str]]:
    """Return (topic, sentence) pairs on the protocol of one run."""
    values = {name: run.get(f"param/{name}") for name in NAMES}
    recorded = {name: str(value) for name, value in values.items() if is_recorded(value)}
    return _describe_settings(recorded)


def _describe_settings(
    values: Mapping[str, str], *others: tuple[str, str]
) -> list[tuple[str, str]]:
    sentences = [(topic, _sentence(topic, values)) for topic in PARAMETERS]
    sentences += [("Checkpoint", CHECKPOINT), *others]
    return [(topic, text) for topic, text in sentences if text]


def _usual_value(runs: Sequence[Run], name: str) -> str:
    values = [run.get(f"param/{name}") for run in runs]
    counts = Counter(str(value) for value in values if is_recorded(value))
    return max(counts, key=counts.__getitem__, default="")


def _sentence(topic: str, values: Mapping[str, str]) -> str:
    """Describe the values of a topic's parameters, without those that state nothing."""
    parts = []
    for name, template in PARAMETERS[topic].items():
        value = values.get(name, "")
        if value not in ("", "None"):
            parts.append(template.format(_readable_value(value)))
    return ", ".join(parts)


def shared_settings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the recorded parameters that have one value in all runs, by name."""
    settings = sorted(recorded_values(runs[0]).items())
    return [item for item in settings if all(run[f"param/{item[0]}"] == item[1] for run in runs)]


def recorded_values(run: Run) -> dict[str, str]:
    """Return the recorded parameters by name."""
    names = [name for name in run if name.startswith("param/") and is_recorded(run[name])]
    return {name.removeprefix("param/"): str(run[name]) for name in names}


def is_recorded(value: Any) -> bool:
    """Return whether a run recorded a value: absent fields of a frame are NaN."""
    return value is not None and value == value


def _readable_value(text: str) -> str:
    """Drop brackets and quotes of a tuple that MLflow stored as text; shorten long fractions."""
    if text.startswith("("):
        names = re.sub(r"[()' ]", "", text).strip(",").split(",")
        # Of attacks or of checkpoints.
        labels = [name if name in CHECKPOINTS else attack_label(name) for name in names]
        return ", ".join(filter(None, labels)) or "none"
    if not FRACTION.fullmatch(text):
        return NORM_NAMES.get(text, text)
    levels = 255 * float(text)
    if abs(2 * levels - round(2 * levels)) < 1e-9:
        return f"{levels:g}/255"
    return f"{float(text):.4g}"
