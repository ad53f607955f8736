"""Show what is recorded: all runs as a table, or one run in full."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlparse

from tyro.conf import Positional

from bench.cli.parsing import Command
from bench.protocol.options import Json, StoreFolder, option
from bench.system.errors import BenchError, UsageError
from bench.tracking.run_logger import SHOWN_DIGITS
from leaderboards.schema.analysis import ANALYSIS, format_measure, measure_label
from leaderboards.schema.checkpoints import CHECKPOINTS
from leaderboards.schema.fields import (
    FAILED,
    FINISHED,
    KILLED,
    REPLACED_TAG,
    RUNNING,
    Tag,
    checkpoint_artifact,
    checksum_tag,
    escape_unprintable,
    parse_json_tag,
)
from leaderboards.schema.metrics import (
    COST,
    RANK_METRIC,
    accuracy_name,
    attack_label,
    describe_images,
    describe_metric,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

MIN_PREFIX = 4
# For people, instead of MLflow's words.
STATUS_NAMES = {FINISHED: "finished", RUNNING: "running", KILLED: "interrupted", FAILED: "failed"}
# In the order of their columns; all but `autoattack` are texts.
COLUMNS = (
    *("id", "status", "suite", "dataset", "student", "method", "teacher", "seed"),
    "autoattack",
)
# What is printed of one run before its numbers.
FACTS = (
    *("id", Tag.SPEC_ID, "status", Tag.STATUS_NOTE, "started", "suite", Tag.DATASET, Tag.STUDENT),
    *(Tag.METHOD, Tag.VARIANT, Tag.TEACHER, Tag.SEED, Tag.TRAINING_PATH, Tag.ATTACK_SEARCH),
)


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Show the runs of a store, newest first, or one run in full.

    Runs that were interrupted or failed are among them; a killed process leaves its run as running.
    """

    run: Positional[
        Annotated[str, option("RUN", "id of an MLflow run, or its first digits, or of a spec")]
    ] = ""
    store: StoreFolder = Path("runs")
    json: Json = False


def show(options: ShowOptions) -> None:
    """Print a run, or a line for each run."""
    from bench.cli.output import print_json
    from bench.system.tables import format_table

    if options.run and not re.fullmatch(r"[0-9a-f]{4,32}", options.run):
        rule = f"an id, or at least {MIN_PREFIX} of its first digits, 0-9 and a-f"
        raise UsageError(f"{options.run!r} names no run: {rule}")
    runs = read_runs(options.store)
    document: dict[str, Any] | list[dict[str, Any]]
    if options.run:
        document = describe_run(find_run(runs, options.run), options.store)
    else:
        document = [summarize(run) for run in reversed(runs)]
    if options.json:
        print_json(document)
    elif isinstance(document, dict):
        print_run(document)
    else:
        print(format_table(COLUMNS, map(table_row, document)))


def read_runs(folder: Path) -> list[Run]:
    """Read all runs of a store, oldest first. Raise BenchError without any; create nothing."""
    from bench.system.database import redact_password
    from bench.tracking.store import open_client, store_exists, suite_runs, tracking_uri

    uri = tracking_uri(folder)
    runs = suite_runs(open_client(uri)) if store_exists(folder) else []
    if not runs:
        raise BenchError(f"no run is recorded in {redact_password(uri)}")
    return runs


def find_run(runs: Sequence[Run], run_id: str) -> Run:
    """Return the run of an id, of the first digits of one, or the newest of a spec's id.

    A finished run of a spec comes before others. Raise UsageError for no run or several.
    """

    matches = [run for run in runs if run.info.run_id.startswith(run_id)]
    if not matches:
        of_spec = [run for run in runs if run.data.tags.get(Tag.SPEC_ID) == run_id]
        matches = sorted(of_spec, key=lambda run: run.info.status == FINISHED)[-1:]
    if not matches:
        raise UsageError(f"no run {run_id!r}: `show` lists the runs of a store")
    if len(matches) > 1:
        ids = ", ".join(run.info.run_id for run in matches[:3])
        raise UsageError(f"{run_id!r} begins the ids of {len(matches)} runs, such as {ids}")
    return matches[0]


def summarize(run: Run) -> dict[str, Any]:
    """Return the columns of the table. The accuracy is a fraction, None if it was not measured."""
    texts = {name: escape_unprintable(run.data.tags.get(name, "")) for name in COLUMNS}
    identity = {"id": run.info.run_id, "status": status_name(run)}
    return {**texts, **identity, "autoattack": run.data.metrics.get(RANK_METRIC)}


def status_name(run: Run) -> str:
    """Return the status of a run for people."""
    return "replaced" if REPLACED_TAG in run.data.tags else STATUS_NAMES[run.info.status]


def table_row(summary: dict[str, Any]) -> list[str]:
    """Return a line of the table: a short id, the accuracy in percent."""
    accuracy = summary["autoattack"]
    texts = {
        "id": summary["id"][:SHOWN_DIGITS],
        "autoattack": "-" if accuracy is None else f"{100 * accuracy:.2f} %",
    }
    return [(summary | texts)[name] for name in COLUMNS]


def describe_run(run: Run, store: Path) -> dict[str, Any]:
    """Return what is recorded of a run, without its curves and its verdicts on single images.

    Accuracies are fractions, beside the counts `n` and `aa_n`; costs are seconds, bytes and counts.
    """

    tags, accuracy, files = run.data.tags, {}, {}
    for name, checkpoint in CHECKPOINTS.items():
        if values := metrics_under(run, f"{checkpoint.metric_prefix}/"):
            accuracy[name] = values
        if sha256 := tags.get(checksum_tag(name)):
            files[name] = {"address": checkpoint_address(run, name, store), "sha256": sha256}
    texts = (
        *(
            Tag.SPEC_ID,
            Tag.ROLE,
            Tag.VARIANT,
            Tag.TRAINING_PATH,
            Tag.ATTACK_SEARCH,
            Tag.STATUS_NOTE,
        ),
        *(Tag.COMMAND, Tag.CODE_COMMIT),
    )
    return {
        **summarize(run),
        **{str(name): tags.get(name, "") for name in texts},
        Tag.CODE_DIRTY.value: tags.get(Tag.CODE_DIRTY) == "true",
        "started": datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(
            timespec="seconds"
        ),
        Tag.TEACHER_SHA256.value: parse_json_tag(tags.get(Tag.TEACHER_SHA256, "")) or {},
        "accuracy": accuracy,
        Tag.FLAGS.value: parse_json_tag(tags.get(Tag.FLAGS, "")) or {},
        "cost": metrics_under(run, COST),
        "analysis": metrics_under(run, ANALYSIS),
        "checkpoints": files,
    }


def metrics_under(run: Run, prefix: str) -> dict[str, float]:
    """Return the metrics of a run that begin with a prefix, without it."""
    values = {}
    for name, value in sorted(run.data.metrics.items()):
        if name.startswith(prefix):
            values[name.removeprefix(prefix)] = value
    return values


def checkpoint_address(run: Run, name: str, store: Path) -> str:
    """Return the path of a checkpoint file, MLflow's address if it lies on a server, "" if gone."""
    from bench.tracking.store import local_artifact

    artifact = checkpoint_artifact(name)
    if path := local_artifact(store, run, artifact):
        return str(path)
    # A record that was imported has no checkpoints.
    is_gone = urlparse(run.info.artifact_uri).scheme in ("", "file")
    return "" if is_gone else f"runs:/{run.info.run_id}/{artifact}"


def print_run(document: dict[str, Any]) -> None:
    """Print a run: facts, accuracies, flags, costs, files."""
    for name in FACTS:
        if document[name]:
            print_fact(name, document[name])
    for role, sha256 in document[Tag.TEACHER_SHA256].items():
        print_fact(f"{role} teacher", f"sha256 {sha256}")
    changes = ", with uncommitted changes" if document[Tag.CODE_DIRTY] else ""
    print_fact("code", document[Tag.CODE_COMMIT] + changes)
    print_fact("command", document["command"])
    if document["accuracy"]:
        print_accuracies(document["accuracy"])
    for name, evidence in document["flags"].items():
        print(f"flag {name}: {evidence}")
    if document["cost"]:
        print("\ncost")
    for name, value in document["cost"].items():
        print_fact(f"  {name}", f"{value:,.1f}" if name.endswith("seconds") else f"{value:,.0f}")
    print_analysis(document["analysis"])
    if document["checkpoints"]:
        print("\ncheckpoints")
    for name, file in document["checkpoints"].items():
        print_fact(f"  {name}", file["address"] or "not in this store")
        print_fact("", f"sha256 {file['sha256']}")


def print_fact(name: str, text: str) -> None:
    """Print a name and its value, in columns."""
    print(f"{name:24}{text}")


def print_analysis(measures: dict[str, float]) -> None:
    """Print a line for each measure of `analyze`, if there are any."""
    if measures:
        print("\nanalysis, with which values are closer to the claim that a measure tests")
    labels = {name: measure_label(f"{ANALYSIS}{name}") for name in measures}
    width = max(map(len, labels.values()), default=0)
    for name, value in measures.items():
        metric = f"{ANALYSIS}{name}"
        ascends = describe_metric(metric).higher_is_better
        closer = {True: "higher", False: "lower", None: "-"}[ascends]
        print(f"  {labels[name]:{width}}{format_measure(metric, value):>8}  {closer}")


def print_accuracies(accuracy: dict[str, dict[str, float]]) -> None:
    """Print a table in percent: a line for each checkpoint, a column for each attack."""
    from bench.system.tables import format_table
    from bench.tracking.note import accuracy_rows

    attacks, rows = accuracy_rows(accuracy, digits=2)
    values = {
        accuracy_name(name, checkpoint): value
        for checkpoint, measured in accuracy.items()
        for name, value in measured.items()
    }
    print(f"\naccuracy in percent, {describe_images(values)}")
    headings = [*map(attack_label, attacks)]
    print(format_table(("checkpoint", *headings), rows, numbers=len(attacks)))


COMMAND = Command(ShowOptions, show)
