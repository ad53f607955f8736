"""Names of what counts in a run beside its metrics: experiment, status, tags, artifacts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from leaderboards.schema.checkpoints import BEST, CHECKPOINTS

# Of an adversarial perturbation.
Norm = Literal["Linf", "L2"]
NORM_LABELS: dict[str, str] = {"Linf": "l-inf", "L2": "L2"}
EXPERIMENT = re.compile(r"(?P<suite>.+)@(?P<version>0|[1-9][0-9]{0,5})")
FINISHED, RUNNING, KILLED, FAILED = "FINISHED", "RUNNING", "KILLED", "FAILED"
# MLflow sets this tag on single runs. Runs without it are groups.
PARENT_TAG = "mlflow.parentRunId"
# Tag of a finished run whose spec was carried out once more: the id of the run that counts.
REPLACED_TAG = "replaced_by"
# An address on a hub of models, and that of a file there.
HUB_SCHEME = "hf:"
HUB_REPOSITORY = r"\w[\w.-]*/\w[\w.-]*"
HUB_FILE = re.compile(rf"{HUB_SCHEME}{HUB_REPOSITORY}:[\w./-]+", re.ASCII)
# Part of training_path where bfloat16 was asked for and the device has none.
NO_BF16 = "fp32 (no bf16 here)"


class Tag(StrEnum):
    """The tags of a run in MLflow that its record holds too, but for the last one."""

    ROLE = "role"
    SPEC_ID = "spec_id"
    DATASET = "dataset"
    METHOD = "method"
    STUDENT = "student"
    TEACHER = "teacher"
    SEED = "seed"
    VARIANT = "variant"
    SETS = "sets"
    STATUS_NOTE = "status_note"
    FLAGS = "flags"
    TEACHER_SHA256 = "teacher_sha256"
    TRAINING_PATH = "training_path"
    # How attacks went through the images, and in which precision: "exact", "device, tf32".
    ATTACK_SEARCH = "attack_search"
    CODE_DIRTY = "code_dirty"
    CODE_COMMIT = "code_commit"
    COMMAND = "command"
    # Where others find the best checkpoint, a HUB_FILE.
    CHECKPOINT_ADDRESS = "checkpoint_address"
    # The digest of the record file.
    RECORD = "sha256.record"


IDENTITY_TAGS = (
    *(Tag.ROLE, Tag.SPEC_ID, Tag.DATASET, Tag.METHOD, Tag.STUDENT, Tag.TEACHER, Tag.SEED),
)
# Those that a record's field `tags` holds; the others follow from its spec.
RECORD_TAGS = tuple(tag for tag in Tag if tag not in IDENTITY_TAGS and tag != Tag.RECORD)
# JSON objects of texts.
JSON_TAGS = (Tag.FLAGS, Tag.TEACHER_SHA256)


class Artifact(StrEnum):
    """The files and folders of a run in MLflow."""

    RECORD = "record.json"
    SPEC = "spec.json"
    ENVIRONMENT = "environment.json"
    TRACEBACK = "traceback.txt"
    CHECKPOINTS = "checkpoints"
    VERDICTS = "verdicts"
    FIGURES = "figures"
    ANALYSIS = "analysis"
    # The network of a registered version.
    MODEL = "model"
    # The configurations of a search.
    TUNED = "tuned"


def checksum_tag(checkpoint: str = BEST) -> str:
    """Return the tag that holds the sha256 of a checkpoint."""
    return f"sha256.{checkpoint}"


CHECKSUM_TAGS = {name: checksum_tag(name) for name in CHECKPOINTS}


def checkpoint_artifact(checkpoint: str = BEST) -> str:
    """Return the path of a checkpoint among the artifacts of a run."""
    return f"{Artifact.CHECKPOINTS}/{checkpoint}.pt"


def in_suite(experiment: str, suite: str | None) -> bool:
    """Return whether an experiment holds runs of `suite` ("digits", "digits@1"; None: of any)."""
    match = EXPERIMENT.fullmatch(experiment)
    return match is not None and suite in (None, match["suite"], experiment)


def file_name(name: str) -> str:
    """Return the name of a network in plain ASCII that files and MLflow's models may have."""
    return re.sub("[^A-Za-z0-9@._+]+", "-", name)


def join_teachers(teachers: Mapping[str, str]) -> str:
    """Join the names of teachers, given by role, without their hashes.

    Robust comes before natural, whatever order a file has.
    """
    names = [teachers[role].rsplit("-", 1)[0] for role in sorted(teachers, reverse=True)]
    return " + ".join(names) or "none"


def parse_json_tag(tag: str) -> dict[str, str] | None:
    """Parse one of JSON_TAGS, {} for an empty one; None for what the benchmark does not write."""
    try:
        content = json.loads(tag or "{}")
    except (ValueError, RecursionError):
        return None
    texts = (*content, *content.values()) if isinstance(content, dict) else (None,)
    is_sound = all(isinstance(text, str) and text.isprintable() for text in texts)
    return content if is_sound else None


def escape_unprintable(text: str) -> str:
    """Replace letters that are invisible, turn a line around or break it by their escapes."""
    if text.isprintable():
        return text
    hidden = {letter for letter in text if not letter.isprintable()}
    return text.translate({ord(x): x.encode("unicode_escape").decode() for x in hidden})
