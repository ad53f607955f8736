"""The protocol of a suite in words, read from what its runs recorded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from leaderboards.schema.metrics import ATTACK_LABELS

FRACTION = re.compile(r"0\.\d{5,}")  # 8/255 has seventeen digits, 0.5 has one
Record = Mapping[str, Any]  # a line of store.collect's frame


def words(runs: Sequence[Record]) -> list[tuple[str, str]]:
    """(topic, sentence) pairs; a value that differs between runs is given as "a / b", an unrecorded one is left out."""
    return [(topic, text) for topic, text in _topics(runs) if text]


def settings(runs: Sequence[Record]) -> list[tuple[str, str]]:
    """Every recorded parameter that has one value in all runs, by name."""
    names = sorted({name for run in runs for name in run if name.startswith("param/")})
    shared = ((name, {run.get(name) for run in runs}) for name in names)
    return [
        (name[6:], str(value))
        for name, values in shared
        if len(values) == 1 and known(value := values.pop())
    ]


def known(value: Any) -> bool:
    """Whether a run recorded it: absent fields of a frame are NaN."""
    return value is not None and value == value


def _topics(runs: Sequence[Record]) -> Iterator[tuple[str, str]]:
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
    yield (
        "Data",
        join(
            say("first {} training images", "limit_train"),
            say("first {} test images", "limit_test"),
        ),
    )
    yield (
        "Checkpoint",
        "the one with the best validation accuracy under PGD (clean, for methods without an inner attack); "
        "the test set is read once, at the end",
    )
    yield "Attacks", ", ".join(_attacks(runs))
    yield "Seeds", _value(runs, "seed") or " / ".join(sorted({run["seed"] for run in runs} - {""}))


def _value(runs: Iterable[Record], name: str) -> str:
    return " / ".join(sorted(map(_words, _distinct(runs, f"param/{name}"))))


def _distinct(runs: Iterable[Record], name: str) -> list[str]:
    return [*dict.fromkeys(str(value) for run in runs if known(value := run.get(name)))]


def _words(text: str) -> str:
    """A parameter as MLflow keeps it, for people: tuples without brackets and quotes, long fractions in short."""
    if text.startswith("("):
        return re.sub(r"[()']", "", text).strip(", ") or "none"
    if not FRACTION.fullmatch(text):
        return text
    levels = 255 * float(text)
    return f"{levels:g}/255" if abs(2 * levels - round(2 * levels)) < 1e-9 else f"{float(text):.4g}"


def _attacks(runs: Sequence[Record]) -> list[str]:
    names = (
        [name for name in runs[0] if name.startswith("test/")] if runs else []
    )  # a frame's lines have the same names
    tried = {name[5:]: None for name in names if any(known(run[name]) for run in runs)}
    labelled = [
        label
        for name, label in ATTACK_LABELS.items()
        if name in tried and name not in ("clean", "worst")
    ]
    return labelled + [
        name
        for name in tried
        if name not in ATTACK_LABELS and name != "n" and not name.endswith("_n")
    ]
