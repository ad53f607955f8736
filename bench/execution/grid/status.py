"""Where the runs of a store are: done, at work on some host, waiting, failed, or dead."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.system.progress import format_duration
from bench.system.tables import format_table
from bench.tracking.claims import Claim, Claims, is_silent
from bench.tracking.listing import ListedRun, list_runs
from bench.tracking.store import LOCKS, open_client, store_exists, suite_ids, tracking_uri
from leaderboards.schema.fields import FAILED, FINISHED, REPLACED_TAG, Tag, escape_unprintable

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from bench.execution.plan import PlannedRun

# In the order of the table; what needs no look comes last.
STATES = ("running", "dead", "interrupted", "failed", "waiting", "to do", "done")
COLUMNS = ("state", "suite", "dataset", "student", "method", "variant", "seed", "where", "what")


@dataclass(frozen=True)
class RunStatus:
    """One run: its state, where it is carried out, and what it is at or why it is not done.

    code: the commit of the source that it was made with.
    """

    state: str
    spec_id: str
    suite: str
    dataset: str
    student: str
    method: str
    variant: str
    seed: str
    where: str = ""
    what: str = ""
    code: str = ""


def read_status(root: Path, planned: Sequence[PlannedRun] = ()) -> list[RunStatus]:
    """Return the state of each run of a store, or of those that are planned. Makes nothing.

    Raise BenchError for a store that cannot be opened.
    """
    runs: list[ListedRun] = []
    claims: dict[str, Claim] = {}
    dead: set[str] = set()
    if store_exists(root):
        uri = tracking_uri(root)
        client = open_client(uri)
        runs = list_runs(client, uri, suite_ids(client))
        claims, dead = read_claims(client, root)

    def read_epoch(run_id: str) -> float | None:
        return client.get_run(run_id).data.metrics.get("epoch")

    newest = newest_runs(runs)
    if not planned:
        states = [state_of_run(run, claims, dead, read_epoch) for run in newest.values()]
    else:
        finished = {key for key, run in newest.items() if run.status == FINISHED}
        states = []
        for plan in planned:
            run = newest.get(plan.spec.id)
            status = run and state_of_run(run, claims, dead, read_epoch)
            states.append(status or state_of_plan(plan, claims, dead, planned, finished))
    return sorted(states, key=lambda status: STATES.index(status.state))


def newest_runs(runs: Iterable[ListedRun]) -> dict[str, ListedRun]:
    """Return the run of each spec id: the newest that is finished, else the newest."""
    newest: dict[str, ListedRun] = {}
    for run in runs:
        if REPLACED_TAG in run.tags:
            continue
        key = run.tags.get(Tag.SPEC_ID, "")
        earlier = newest.get(key)
        is_better = run.status == FINISHED or not earlier or earlier.status != FINISHED
        if is_better:
            newest[key] = run
    return newest


def read_claims(client: MlflowClient, root: Path) -> tuple[dict[str, Claim], set[str]]:
    """Return the claims of all suites by spec id, and the ids of those whose process is dead."""
    claims: dict[str, Claim] = {}
    dead_names: set[str] = set()
    for experiment in client.search_experiments():
        heard, dead = Claims(client, experiment.experiment_id, root / LOCKS).look()
        living = [claim for claim in heard if not is_silent(claim, time.time())]
        # The lowest ticket holds, and a living one before a dead one.
        last_first = sorted(heard, key=lambda claim: claim.order, reverse=True)
        for claim in [*dead, *last_first, *(c for c in last_first if c in living)]:
            claims[claim.name] = claim
        dead_names |= {c.name for c in [*dead, *heard]} - {c.name for c in living}
    return claims, dead_names


def state_of_run(
    run: ListedRun,
    claims: dict[str, Claim],
    dead: set[str],
    read_epoch: Callable[[str], float | None],
) -> RunStatus:
    """Return the state of a run that began; read_epoch: of a run id its last epoch, if any."""
    tags, spec_id = run.tags, run.tags.get(Tag.SPEC_ID, "")
    names = (Tag.SPEC_ID, "suite", *(Tag(name) for name in COLUMNS[2:7]), Tag.CODE_COMMIT)
    values = [escape_unprintable(tags.get(name, "")) for name in names]
    identity = dict(zip((Tag.SPEC_ID, *COLUMNS[1:7], "code"), values, strict=True))
    claim = claims.get(spec_id)
    if run.status == FINISHED:
        return RunStatus("done", **identity)
    if claim and spec_id not in dead:
        return RunStatus("running", **identity, where=host_of(claim), what=claim.doing)
    if run.status == FAILED:
        return RunStatus("failed", **identity, what=tags.get(Tag.STATUS_NOTE, ""))
    if claim:
        silence = format_duration(max(time.time() - claim.heard, 0))
        what = f"no beat for {silence}; the same command takes it up"
        return RunStatus("dead", **identity, where=host_of(claim), what=what)
    epoch = read_epoch(run.run_id)
    what = "before its first epoch ended" if epoch is None else f"after epoch {epoch + 1:.0f}"
    return RunStatus("interrupted", **identity, what=f"{what}; the same command goes on")


def state_of_plan(
    plan: PlannedRun,
    claims: dict[str, Claim],
    dead: set[str],
    planned: Sequence[PlannedRun],
    finished: set[str],
) -> RunStatus:
    """Return the state of a run that has not begun."""
    spec = plan.spec
    identity = (spec.id, spec.suite, spec.dataset, spec.arch, spec.method, plan.variant)
    teachers = {other.identity for other in planned if other.spec.id not in finished}
    missing = sorted(teachers.intersection(spec.teachers.values()))
    if missing:
        return RunStatus("waiting", *identity, str(spec.seed), what=f"for {', '.join(missing)}")
    claim = claims.get(spec.id)
    if claim and spec.id not in dead:
        return RunStatus("running", *identity, str(spec.seed), host_of(claim), claim.doing)
    return RunStatus("to do", *identity, str(spec.seed))


def host_of(claim: Claim) -> str:
    """Return where a claim's process is."""
    return f"{claim.host} {claim.pid}"


def format_status(states: Sequence[RunStatus], all_done: bool = False) -> str:
    """Return counts, a line for each run that is not done, and with `all_done` for the others."""
    counts = Counter(status.state for status in states)
    lines = [", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])]
    shown = [status for status in states if all_done or status.state != "done"]
    if shown:
        rows = [[str(asdict(status)[name]) for name in COLUMNS] for status in shown]
        lines.append(format_table(COLUMNS, rows))
    commits = Counter(status.code[:10] for status in states if status.code)
    if len(commits) > 1:
        text = ", ".join(f"{commit} ({count})" for commit, count in commits.most_common())
        lines.append(f"made with several versions of the code: {text}")
    return "\n".join(lines)
