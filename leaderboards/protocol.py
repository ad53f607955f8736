"""The protocol of a suite in words, read from what its runs recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from leaderboards.table import LABELS

if TYPE_CHECKING:
    import pandas as pd


def words(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """(topic, sentence) pairs; a value that differs between runs is given as "a / b", an unrecorded one is left out."""
    return [(topic, text) for topic, text in _topics(runs) if text]


def settings(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Every recorded parameter that has one value in all runs, by name."""
    names = [str(name) for name in runs.columns if str(name).startswith("param/")]
    return [(name[6:], str(runs[name].iloc[0])) for name in names if runs[name].nunique(dropna=False) == 1]


def _topics(runs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    def say(template: str, name: str) -> str:
        value = _value(runs, name)
        return template.format(value) if value not in ("", "None") else ""

    def join(*parts: str) -> str:
        return ", ".join(filter(None, parts))

    yield "Threat", say("l-infinity, eps {} in pixels of [0, 1]", "eps")
    yield (
        "Training",
        join(
            say("{} epochs", "training.epochs"),
            say("batches of {}", "training.batch"),
            say("{} schedule", "training.schedule"),
            say("learning rate {}", "training.lr"),
            say("averages of the weights: {}", "training.averaging"),
        ),
    )
    yield "Inner attack", join(say("{} steps", "inner_steps"), say("of {}", "inner_step"))
    yield "Data", join(say("first {} training images", "limit_train"), say("first {} test images", "limit_test"))
    yield (
        "Checkpoint",
        "the one with the best validation accuracy under PGD (clean, for methods without an inner attack); "
        "the test set is read once, at the end",
    )
    yield "Attacks", ", ".join(_attacks(runs))
    yield "Seeds", _value(runs, "seed") or " / ".join(sorted(set(runs["seed"]) - {""}))


def _value(runs: pd.DataFrame, name: str) -> str:
    column = f"param/{name}"
    return " / ".join(sorted({_words(text) for text in runs[column].dropna().astype(str)})) if column in runs else ""


def _words(text: str) -> str:
    """A parameter as MLflow keeps it, for people: a tuple as a list without brackets and quotes."""
    return re.sub(r"[()']", "", text).strip(", ") or "none" if text.startswith("(") else text


def _attacks(runs: pd.DataFrame) -> list[str]:
    tried = [str(name)[5:] for name in runs.columns if str(name).startswith("test/") and runs[name].notna().any()]
    known = [label for name, label in LABELS.items() if name in tried and name not in ("clean", "worst")]
    return known + [name for name in tried if name not in LABELS and name != "n" and not name.endswith("_n")]
