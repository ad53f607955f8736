"""The protocol of a suite in words, read from what its runs recorded."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from leaderboards.schema.metrics import ATTACK_LABELS

Run: TypeAlias = Mapping[str, Any]  # a line of store.collect's frame
FRACTION = re.compile(r"0\.\d{5,}")  # 8/255 has seventeen digits, 0.5 has one
PARAMETERS = {
    "Threat": {"eps": "l-infinity, eps {} in pixels of [0, 1]"},
    "Training": {
        "training.epochs": "{} epochs",
        "training.batch": "batches of {}",
        "training.schedule": "{} schedule",
        "training.lr": "learning rate {}",
        "training.averaging": "averages of the weights: {}",
    },
    "Inner attack": {"inner_steps": "{} steps", "inner_step": "of {}"},
    "Data": {"limit_train": "first {} training images", "limit_test": "first {} test images"},
}
CHECKPOINT = (
    "the one with the best validation accuracy under PGD (clean, for methods without an inner "
    "attack); the test set is read once, at the end"
)


def describe_protocol(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return (topic, sentence) pairs, with "a / b" for values that differ between runs."""
    sentences = {}
    for topic, templates in PARAMETERS.items():
        parts = []
        for name, template in templates.items():
            value = _joined_values(runs, name)
            if value not in ("", "None"):
                parts.append(template.format(value))
        sentences[topic] = ", ".join(parts)
    sentences["Checkpoint"] = CHECKPOINT
    sentences["Attacks"] = ", ".join(_attack_labels(runs))
    seeds = {run["seed"] for run in runs} - {""}
    sentences["Seeds"] = _joined_values(runs, "seed") or " / ".join(sorted(seeds))
    return [(topic, text) for topic, text in sentences.items() if text]


def shared_settings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return the recorded parameters that have one value in all runs, by name."""
    first, *later_runs = runs
    settings = []
    for name, value in sorted(recorded_values(first, "param/").items()):
        if all(run[f"param/{name}"] == value for run in later_runs):
            settings.append((name, str(value)))
    return settings


def recorded_values(run: Run, prefix: str) -> dict[str, Any]:
    """Return the recorded values whose names begin with `prefix`, by the rest of the name."""
    values = {}
    for name, value in run.items():
        if name.startswith(prefix) and is_recorded(value):
            values[name.removeprefix(prefix)] = value
    return values


def is_recorded(value: Any) -> bool:
    """Return whether a run recorded a value: absent fields of a frame are NaN."""
    return value is not None and value == value


def sort_attacks(names: Collection[str]) -> list[str]:
    """Sort the attacks among metrics: those of ATTACK_LABELS in its order, then the others."""
    attacks = [name for name in ATTACK_LABELS if name in names]
    for name in sorted(set(names).difference(ATTACK_LABELS)):
        if name != "n" and not name.endswith("_n"):
            attacks.append(name)
    return attacks


def _joined_values(runs: Sequence[Run], name: str) -> str:
    values: dict[str, None] = {}
    for run in runs:
        value = run.get(f"param/{name}")
        if is_recorded(value):
            values[str(value)] = None
    return " / ".join(sorted(map(_readable_value, values)))


def _readable_value(text: str) -> str:
    """Drop brackets and quotes of a tuple that MLflow stored as text; shorten long fractions."""
    if text.startswith("("):
        return re.sub(r"[()']", "", text).strip(", ") or "none"
    if not FRACTION.fullmatch(text):
        return text
    levels = 255 * float(text)
    if abs(2 * levels - round(2 * levels)) < 1e-9:
        return f"{levels:g}/255"
    return f"{float(text):.4g}"


def _attack_labels(runs: Sequence[Run]) -> list[str]:
    names: set[str] = set()
    for run in runs:
        names.update(recorded_values(run, "test/"))
    return [ATTACK_LABELS.get(name, name) for name in sort_attacks(names - {"clean", "worst"})]
