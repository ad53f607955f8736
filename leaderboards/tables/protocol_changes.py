"""What a run did under another protocol, which makes it another row and never another seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import pandas as pd

# Parameters that a method and its variant settle.
METHOD_PREFIXES = ("param/hyper.", "param/tuned")
PROTOCOL_PREFIXES = tuple(
    f"param/{name}" for name in ("training.", "eps", "inner_", "limit_", "attacks", "precision")
)
# With equal parameters they are equal in a sound record.
IMAGE_COUNTS = {"test/n": "images", "test/aa_n": "images of AutoAttack"}

Change: TypeAlias = tuple[Any, str]  # index of a run, text


def describe_changes(runs: pd.DataFrame, stated: Mapping[str, str]) -> list[str]:
    """Describe what each run did under another protocol; "" for nothing.

    The protocol is what is `stated`, by parameter, and beyond that what most runs did. What a run's
    variant stands for, as "official" and "tuned" do, is not repeated, and a parameter that was
    never recorded is not a change.
    """
    changes: dict[Any, list[str]] = {index: [] for index in runs.index}
    for index, text in _changed_protocol(runs, stated):
        changes[index].append(text)
    for index, text in _changed_image_counts(runs):
        if "limit_" not in " ".join(changes[index]):
            changes[index].append(text)
    for index, text in _changed_hyper_parameters(runs):
        changes[index].append(text)
    return [", ".join(texts) for texts in changes.values()]


def changed_eps(run: Mapping[str, Any]) -> str:
    """Return the change that makes a run's attacks others than those of its table; "" if none."""
    for change in run["changed"].split(", "):
        if change.startswith("eps="):
            return str(change)
    return ""


def _changed_protocol(runs: pd.DataFrame, stated: Mapping[str, str]) -> Iterator[Change]:
    sets = runs["sets"].to_dict()
    protocol = _usual_values(runs, PROTOCOL_PREFIXES)
    for name, value in stated.items():
        if f"param/{name}" in runs:
            protocol[f"param/{name}"] = value
    for _, part in runs.groupby("teacher"):
        usual_values = protocol | _usual_values(part, ("param/teachers.",))
        for name, usual in usual_values.items():
            values = part[name]
            changed = values[values.notna() & (values != usual)]
            for index, value in changed.items() if usual else ():
                by_variant = [f"param/training.{word}" for word in sets[index].split(",")]
                if name not in by_variant:
                    yield index, f"{name.removeprefix('param/')}={value}"


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
    keys = list(zip(runs["method"], runs["variant"], strict=True))
    for name in runs.columns[runs.columns.str.startswith(METHOD_PREFIXES)]:
        values = runs[name].fillna("").tolist()
        recorded = defaultdict(list)
        for key, value in zip(keys, values, strict=True):
            if value:
                recorded[key].append(value)
        usual = {key: _most_common(group) for key, group in recorded.items()}
        for index, key, value in zip(runs.index, keys, values, strict=True):
            if value and value != usual[key]:
                yield index, f"{name.removeprefix('param/')}={value}"


def _usual_values(runs: pd.DataFrame, prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the most common value of each recorded parameter whose name starts so.

    Runs whose variant sets some of them, as tuned ones do, count only where there are no others.
    """
    plain = runs[runs["sets"] == ""]
    if plain.empty:
        plain = runs
    names = [name for name in runs.columns if name.startswith(prefixes)]
    return {name: _most_common(plain[name].fillna("").tolist()) for name in names}


def _most_common(values: list[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
