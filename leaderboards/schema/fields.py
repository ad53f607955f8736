"""Names of what counts in a run: its experiment, its tags, its metrics and its curves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from leaderboards.schema.checkpoints import CHECKPOINTS

EXPERIMENT = re.compile(r"(?P<suite>.+)@(?P<version>0|[1-9][0-9]{0,5})")
FINISHED = "FINISHED"
# MLflow marks interrupted runs as killed.
STATUSES = (FINISHED, "RUNNING", "KILLED", "FAILED")
# MLflow sets this tag on single runs. Runs without it are groups.
PARENT_TAG = "mlflow.parentRunId"
IDENTITY_TAGS = ("role", "spec_id", "dataset", "method", "student", "teacher", "seed")
CHECKSUM_TAGS = tuple(f"sha256.{name}" for name in CHECKPOINTS)
# JSON objects of texts.
JSON_TAGS = ("flags", "teacher_sha256")
CODE_TAGS = ("code_dirty", "code_commit", "command")
RECORD_TAGS = ("variant", "sets", "status_note", *JSON_TAGS, "training_path", *CODE_TAGS)
TAGS = (*IDENTITY_TAGS, *RECORD_TAGS, *CHECKSUM_TAGS)
# Part of training_path where bfloat16 was asked for and the device has none.
NO_BF16 = "fp32 (no bf16 here)"
# Where a run is from.
ORIGIN = ("run_id", "artifact_uri", "start_time", "status")
_TEST_PREFIXES = tuple(f"{checkpoint.metric_prefix}/" for checkpoint in CHECKPOINTS.values())
METRIC_PREFIXES = (*_TEST_PREFIXES, "cost/", "val/")
# Metrics of each epoch begin so, beside "lr".
_EPOCH_PREFIXES = ("train/", "val/")
CURVE_PREFIXES = (*_EPOCH_PREFIXES, "lr")

Curve: TypeAlias = tuple[Sequence[int], Sequence[float]]  # epochs, values
Curves: TypeAlias = Mapping[str, Curve]  # of one run, by metric


def in_suite(experiment: str, suite: str | None) -> bool:
    """Return whether an experiment holds runs of `suite` ("digits", "digits@1"; None: of any)."""
    match = EXPERIMENT.fullmatch(experiment)
    return match is not None and suite in (None, match["suite"], experiment)


def join_teachers(teachers: Mapping[str, str]) -> str:
    """Join the names of teachers, given by role, without their hashes.

    Robust comes before natural, whatever order a file has.
    """
    names = [teachers[role].rsplit("-", 1)[0] for role in sorted(teachers, reverse=True)]
    return " + ".join(names) or "none"


def describe_unfinished(statuses: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Count the runs left out because of their status: one line, or none without such runs."""
    counts = Counter(status for status in statuses if status not in wanted)
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    if not parts:
        return []
    return [f"runs that did not finish are left out: {', '.join(parts)}"]


def is_curve(metric: str) -> bool:
    """Return whether a metric has a value for each epoch."""
    return metric == "lr" or metric.startswith(_EPOCH_PREFIXES)


def parse_json_tag(tag: str) -> dict[str, str] | None:
    """Parse one of JSON_TAGS, {} for an empty one; None for what the benchmark does not write."""
    try:
        content = json.loads(tag or "{}")
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    for text in (*content, *content.values()):
        if not isinstance(text, str) or not text.isprintable():
            return None
    return content


def escape_unprintable(text: str) -> str:
    """Replace letters that are invisible, turn a line around or break it by their escapes."""
    if text.isprintable():
        return text
    letters = []
    for letter in text:
        if not letter.isprintable():
            letter = letter.encode("unicode_escape").decode()
        letters.append(letter)
    return "".join(letters)
