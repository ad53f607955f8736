"""What of a run counts here: its experiment's name, its tags, its metrics, its curves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = re.compile(r"(?P<suite>.+)@(?P<version>0|[1-9][0-9]{0,5})")
FINISHED = "FINISHED"
PARENT = "mlflow.parentRunId"  # a tag of single runs; runs without it stand for groups
IDENTITY = ("role", "spec_id", "dataset", "method", "student", "teacher", "seed")
CHECKSUMS = ("sha256.best", "sha256.last", "sha256.ema", "sha256.swa")
TEXTS = ("flags", "teacher_sha256")  # tags that are JSON objects of lines of text
NOTED = (
    "variant",
    "sets",
    "status_note",
    *TEXTS,
    "training_path",
    "code_dirty",
    "code_commit",
    "command",
)
TAGS = (*IDENTITY, *NOTED, *CHECKSUMS)
PLACE = ("experiment", "run_id", "artifact_uri", "start_time")
METRICS = ("test/", "test_last/", "test_ema/", "test_swa/", "cost/", "val/")
CURVES = (
    "train/",
    "val/",
    "lr",
)  # how the names of metrics of each epoch begin; "lr" is a whole name

Curve: TypeAlias = tuple[Sequence[int], Sequence[float]]  # epochs, values
Curves: TypeAlias = Mapping[str, Curve]  # of a run, by metric


def lines(runs: pd.DataFrame) -> list[dict[Any, Any]]:
    """The lines of a frame by the names of its columns; its own to_dict takes three times as long."""
    names = [*runs.columns]
    return [
        dict(zip(names, line, strict=True))
        for line in zip(*(runs[name].tolist() for name in names), strict=True)
    ]


def wanted(experiment: str, suite: str | None) -> bool:
    """Whether an experiment holds runs of a suite: of `suite` ("digits" or "digits@1") if one is given."""
    match = EXPERIMENT.fullmatch(experiment)
    return match is not None and suite in (None, match["suite"], experiment)


def taught_by(teachers: Mapping[str, str]) -> str:
    """The names of teachers, given by role, without their hashes: robust before natural, whatever order a file has."""
    return (
        " + ".join(
            identity.rsplit("-", 1)[0] for _, identity in sorted(teachers.items(), reverse=True)
        )
        or "none"
    )


def unfinished(statuses: Iterable[str]) -> list[str]:
    """A line that counts the runs that are left out because they did not finish, if there are any."""
    counts = Counter(status for status in statuses if status != FINISHED)
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return [f"runs that did not finish are left out: {said}"] if counts else []


def curve(metric: str) -> bool:
    """Whether a metric is one of each epoch."""
    return metric == "lr" or metric.startswith(("train/", "val/"))


def texts(tag: str) -> dict[str, str] | None:
    """What one of TEXTS says, {} where it is empty; None where it is not what the benchmark writes."""
    try:
        found = json.loads(tag or "{}")
    except (ValueError, RecursionError):
        return None
    said = [*found, *found.values()] if isinstance(found, dict) else [None]
    return found if all(isinstance(text, str) and text.isprintable() for text in said) else None


def visible(text: str) -> str:
    """Letters that are not seen, turn a line around or break it, as their escapes; all others as they are."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
