"""Changes of a run from its protocol, which make it another row and never another seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import pandas as pd

from leaderboards.schema.metrics import COUNT_LABELS, accuracy_name

# Parameters that a method and its variant settle.
METHOD_PREFIXES = ("param/hyper.", "param/tuned")
# A parameter named so, with a role behind it, is the teacher's identity.
TEACHER_PREFIX = "param/teachers."
# Parameters that make another experiment.
PROTOCOL = ("training.", "norm", "eps", "inner_", "limit_", "attacks", "precision")
PROTOCOL_PREFIXES = tuple(f"param/{name}" for name in PROTOCOL)
# In a sound record they are equal where the parameters are.
IMAGE_COUNTS = {accuracy_name(count): label for count, label in COUNT_LABELS.items()}

Change: TypeAlias = tuple[Any, str]  # index of a run, text


def describe_changes(runs: pd.DataFrame, stated: Mapping[str, str]) -> list[str]:
    """Describe what each run did under another protocol; "" for nothing.

    The protocol is what is `stated`, by parameter, and beyond that what most runs did. What a run's
    variant stands for, as "official" and "tuned" do, is not repeated, and a parameter that was
    never recorded is not a change.
    """
    changes: dict[Any, list[str]] = {index: [] for index in runs.index}
    for index, text in _changed_parameters(runs, stated):
        changes[index].append(text)
    for index, text in _changed_image_counts(runs):
        if "limit_" not in " ".join(changes[index]):
            changes[index].append(text)
    for index, text in _changed_hyper_parameters(runs):
        changes[index].append(text)
    return list(map(", ".join, changes.values()))


def find_threat_change(changed: str) -> str:
    """Return the changes that make a row's attacks others than those of its table; "" if none."""
    changes = changed.split(", ")
    return ", ".join(change for change in changes if change.startswith(("norm=", "eps=")))


def without_eps_change(changed: str) -> str:
    """Return the changes of a row other than those of its attacks' radius and steps."""
    kept = [change for change in changed.split(", ") if not change.startswith(("eps=", "inner_"))]
    return ", ".join(kept)


def _changed_parameters(runs: pd.DataFrame, stated: Mapping[str, str]) -> Iterator[Change]:
    sets = runs["sets"].to_dict()
    protocol = most_common_values(runs, PROTOCOL_PREFIXES)
    for name, value in stated.items():
        if f"param/{name}" in runs:
            protocol[f"param/{name}"] = value
    for _, part in runs.groupby("teacher"):
        usual_values = protocol | most_common_values(part, (TEACHER_PREFIX,))
        for index, name, value in _unusual_values(part, usual_values):
            # `sets` names what the variant settles of the training.
            field = name.removeprefix("param/training.")
            if field == name or field not in sets[index].split(","):
                yield index, _assignment(name, value)


def _unusual_values(runs: pd.DataFrame, usual: dict[str, str]) -> Iterator[tuple[Any, str, str]]:
    """Yield (index, parameter, value) of recorded values that differ from the usual one."""
    for name in filter(usual.get, usual):
        values = runs[name].dropna()
        for index, value in values[values != usual[name]].items():
            yield index, name, value


def _changed_image_counts(runs: pd.DataFrame) -> Iterator[Change]:
    """Yield runs judged on another number of images than most on the same data."""
    for name, label in IMAGE_COUNTS.items():
        if name not in runs:
            continue
        for _, counts in runs[name].dropna().groupby(runs["dataset"]):
            for index, count in counts[counts != _most_common(counts.tolist())].items():
                yield index, f"{label}={count:g}"


def _changed_hyper_parameters(runs: pd.DataFrame) -> Iterator[Change]:
    """Yield runs that differ from others of their method and variant, which says what differs."""
    settings = list(zip(runs["method"], runs["variant"], strict=True))
    for name in runs.columns[runs.columns.str.startswith(METHOD_PREFIXES)]:
        values = list(zip(settings, runs[name].fillna("").tolist(), strict=True))
        usual: dict[tuple[str, str], str] = {}
        for (setting, value), _ in Counter(values).most_common():
            if value:
                usual.setdefault(setting, value)
        for index, (setting, value) in zip(runs.index, values, strict=True):
            if value and value != usual[setting]:
                yield index, _assignment(name, value)


def most_common_values(runs: pd.DataFrame, prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the most common value of each recorded parameter whose name starts so.

    Runs whose variant sets some of them, as tuned ones do, count only where there are no others.
    """
    is_plain = runs["sets"] == ""
    plain = runs[is_plain] if is_plain.any() else runs
    names = runs.columns[runs.columns.str.startswith(prefixes)]
    return {name: _most_common(plain[name].fillna("").tolist()) for name in names}


def _assignment(parameter: str, value: object) -> str:
    return f"{parameter.removeprefix('param/')}={value}"


def _most_common(values: list[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
