"""Interrupt a command at each of its steps, give it again, and compare with the undisturbed result.

    python tests/faults.py --flow run,tune --fault kill --every 7
    python tests/faults.py --flow import --instants 33 34

A step is what others can see: a file of the folder opened to be written, renamed or removed, a
folder made or removed, a commit of a database. Before step N the process is killed, gets SIGTERM,
or finds the disk full from then on. Prints what is wrong, and a line for each flow and fault.
Each command is a process that was forked from one with all packages imported.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grids

SUITE = """
name = "short"
base = "digits"
students = ["resnet8-w4"]
seeds = [0]
attacks = ["fgsm"]
full_checkpoints = ["best"]
training.epochs = 2
"""
SMALL = "--limit-train 64 --limit-test 8 --quiet"
RUN = f"run --suite short.toml --method natural {SMALL}"
TUNE = f"tune --suite short.toml --method natural --trials 2 --min-clean 0 --search-seed 7 {SMALL}"
TEACHER = f"teacher train --suite digits --arch resnet8-w4 {SMALL}"
IMPORT_TEACHER = "teacher import mine net.pt --arch resnet8-w4 --dataset digits --limit-test 100"
LIMIT_SECONDS = 600  # of one command
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FILE_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}
REMOVALS = ("os.remove", "os.rmdir")
# Statements that SQLite's driver commits at once.
SCHEMA_CHANGES = ("CREATE", "ALTER", "DROP")
FAULTS = ("kill", "term", "disk")
# The last two: an exit code 0 before all was there, and other ends, codes or words than expected.
KINDS = ("lost", "doubled", "different", "left over", "not whole", "said")
MOST_LINES = 5  # of a command that did not end well


@dataclass(frozen=True)
class Flow:
    """A command to interrupt, in a folder that `prepare` fills.

    again: how it is given once more, if otherwise. last_step: the last that is an instant but one.
    """

    words: str
    prepare: Callable[[], None]
    again: str = ""
    last_step: str = ""


def run_main(words: str) -> None:
    from bench.cli.main import main

    with suppress(SystemExit):
        main(words.split())


def make_store() -> None:
    from bench.tracking.store import TrackingStore

    TrackingStore(Path("runs"))


def make_finished() -> None:
    run_main(RUN)


def make_record() -> None:
    """A teacher's record and its checkpoint, beside a store without runs."""
    run_main(TEACHER)
    run_main("export --suite digits --out out")
    shutil.rmtree("runs")
    make_store()


def make_checkpoint() -> None:
    """A network that knows some digits: a worse one is no teacher."""
    import torch

    from bench import models
    from bench.datasets import augmentation, loading
    from bench.datasets.digits import DATASET
    from bench.models import checkpoint

    torch.manual_seed(0)
    net, train = models.build("resnet8-w4", DATASET), loading.load_data("digits", Path()).train
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for rows in torch.split(torch.randperm(len(train)), 64):
        outputs = net(augmentation.to_float(train.x[rows]))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(outputs, train.y[rows]).backward()
        optimizer.step()
    checkpoint.save(Path("net.pt"), net.state_dict())


# The first start ends as its database gets its name: from there on it is a run like any other.
FLOWS = {
    "first start": Flow(RUN, lambda: None, last_step="os.rename runs/mlflow.db.part"),
    "run": Flow(RUN, make_store),
    "forced run": Flow(f"{RUN} --force", make_finished, again=RUN),
    "tune": Flow(TUNE, make_store),
    "import": Flow("import out", make_record),
    "teacher import": Flow(IMPORT_TEACHER, make_checkpoint),
}


class Steps:
    """The steps of this process in a folder. At number `instant` the fault strikes."""

    def __init__(self, folder: Path, fault: str, instant: int, log: int) -> None:
        self.folder, self.fault, self.instant, self.log = f"{folder}/", fault, instant, log
        self.number, self.is_full = 0, False

    def watch(self) -> None:
        """Count from now on, for good."""
        import sqlalchemy
        from sqlalchemy.engine import Engine

        sys.addaudithook(self.see_event)
        sqlalchemy.event.listen(Engine, "commit", self.see_commit)
        sqlalchemy.event.listen(Engine, "before_cursor_execute", self.see_statement)

    def see_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or path is None or not flags & WRITING:
                return
            self.see_path(event, path, None)
        elif event in FILE_EVENTS:
            # The last arguments are folders that paths are relative to, -1 for none.
            count = 2 if event in ("os.rename", "os.link") else 1
            self.see_path(event, arguments[0], arguments[-count])

    def see_path(self, event: str, path: Any, parent: int | None) -> None:
        name = os.fsdecode(path)
        if parent is not None and parent >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{parent}"), name)
        name = os.path.abspath(name)
        if name.startswith(self.folder):
            name = name.removeprefix(self.folder)
            no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
            self.step(event, name, no_space)

    def see_commit(self, connection: Any) -> None:
        # One that changed nothing writes nothing.
        changes = connection.connection.dbapi_connection.total_changes
        if changes != connection.info.get("changes", 0):
            connection.info["changes"] = changes
            self.step_database("commit", connection)

    def see_statement(self, connection: Any, _: Any, statement: str, *__: Any) -> None:
        if statement.lstrip().upper().startswith(SCHEMA_CHANGES):
            self.step_database("schema", connection)

    def step_database(self, event: str, connection: Any) -> None:
        from sqlalchemy.exc import OperationalError

        cause = sqlite3.OperationalError("database or disk is full")
        name = Path(connection.engine.url.database).name
        self.step(event, name, OperationalError(event.upper(), None, cause))

    def step(self, event: str, name: str, no_space: Exception) -> None:
        os.write(self.log, f"{event} {name}\n".encode())
        number, self.number = self.number, self.number + 1
        if self.is_full and event not in REMOVALS:
            raise no_space
        if number != self.instant:
            return
        if self.fault == "disk":
            # It stays full until the command has ended.
            self.is_full = True
            raise no_space
        os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGTERM)


@dataclass
class Ended:
    """How a command ended, what it said, and its steps."""

    code: int
    text: str
    steps: list[str]
    orphans: bool


@dataclass
class Result:
    """What a folder holds in the end. facts: by name. counts: of what may be there once."""

    facts: dict[str, object] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    files: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)

    def faults(self, undisturbed: Result) -> list[str]:
        """Return what differs from a result that nothing disturbed."""
        facts, expected = self.facts, undisturbed.facts
        faults = [f"lost: {name}" for name in sorted(expected.keys() - facts.keys())]
        for name, content in facts.items():
            if name not in expected:
                faults.append(f"left over: {name}")
            elif content != expected[name]:
                faults.append(f"different: {name}: {difference(expected[name], content)[:600]}")
        for name, count in self.counts.items():
            if count > undisturbed.counts[name]:
                faults.append(f"doubled: {name} {count}")
        faults += [f"left over: {name}" for name in sorted(self.files - undisturbed.files)]
        return faults + [f"left over: {text}" for text in self.left]


def difference(expected: Any, content: Any) -> str:
    """Return what differs between two facts, in short."""
    if isinstance(expected, dict) and isinstance(content, dict):
        names = {n for n in expected | content if expected.get(n) != content.get(n)}
        pairs = [f"{n}: {difference(expected.get(n), content.get(n))}" for n in sorted(names)]
        return "; ".join(pairs)
    if isinstance(expected, list) and isinstance(content, list):
        lists = Counter(map(str, expected)), Counter(map(str, content))
        return f"without {[*lists[0] - lists[1]]}, with {[*lists[1] - lists[0]]}"
    return f"{expected!r} -> {content!r}"


RANDOM_NAME = re.compile(r"[0-9a-f]{16,32}|\d{8}-\d{6}\.\d{3}")


def read_result(folder: Path) -> Result:
    """Return what a folder holds that an interruption must not change."""
    result, root = Result(), folder / "runs"
    for path in folder.rglob("*"):
        # SQLite's own: it ignores one without content, and removes it with the next write.
        if path.name.endswith("-journal"):
            continue
        result.files.add(RANDOM_NAME.sub("*", str(path.relative_to(folder))))
    for path in root.glob("records/*.json"):
        result.facts[f"record {path.name}"] = grids.comparable(path)
    for path in root.glob("teachers/*"):
        result.facts[f"teacher {path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in root.glob("tuned/*"):
        values = tomllib.loads(path.read_text())
        # The commit of the source, which a test may change.
        del values["provenance"]["code"]
        result.facts[f"tuned {path.name}"] = values
    if (root / "tuning.db").exists():
        read_trials(root / "tuning.db", result)
    if (root / "mlflow.db").exists():
        with closing(sqlite3.connect(root / "mlflow.db")) as database:
            read_database(database, root / "artifacts", result)
    return result


def read_trials(file: Path, result: Result) -> None:
    """Add the trials of the studies in a file."""
    import optuna

    from bench.system.database import sqlite_address
    from bench.tuning.storage import open_tables
    from bench.tuning.study import group_attempts

    storage = open_tables(sqlite_address(file))
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        for number, attempts in enumerate(group_attempts(study).values()):
            last = attempts[-1]
            result.facts[f"trial {name} {number}"] = [last.state, last.params, last.values]
            done = [attempt for attempt in attempts if attempt.values]
            result.counts[f"trial {name} {number}"] = len(done)
    storage.engine.dispose()


def read_database(database: sqlite3.Connection, artifacts: Path, result: Result) -> None:
    """Add what MLflow's tables hold."""
    for name, text in database.execute("SELECT key, value FROM experiment_tags"):
        if name.startswith("claim."):
            result.left.append(f"{name} {text}")
    select = (
        "SELECT run_uuid, status, e.name FROM runs JOIN experiments e USING (experiment_id)"
        " WHERE runs.lifecycle_stage = 'active'"
    )
    runs = database.execute(select).fetchall()
    for run_id, status, experiment in runs:
        tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)))
        if "replaced_by" in tags:
            continue
        names = ("role", "method", "spec_id", "trial", "seed", "variant")
        name = f"run {experiment}: " + " ".join(tags[tag] for tag in names if tag in tags)
        if status != "FINISHED":
            result.left.append(f"{name} is {status}: {tags.get('status_note', '')}")
            continue
        result.counts[name] += 1
        result.facts[name] = describe_run(database, run_id, tags, artifacts)
    versions = database.execute("SELECT name, count(*) FROM model_versions GROUP BY name")
    result.facts |= {f"versions of {name}": count for name, count in versions}
    ids = {run_id for run_id, *_ in runs}
    for folder in artifacts.glob("*"):
        if folder.name not in ids and folder.name != "models":
            result.left.append(f"artifacts of no run: {folder.name}")


def describe_run(
    database: sqlite3.Connection, run_id: str, tags: dict[str, str], artifacts: Path
) -> dict[str, object]:
    """Return what a run must have, whatever happened to it."""
    select = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step, value"
    rows = database.execute(select, (run_id,)).fetchall()
    metrics = [row for row in rows if not row[0].startswith((grids.TIMES, "not_finite"))]
    folder = artifacts / run_id / "artifacts"
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    # One run of those that are alike is a version of a model.
    files = sorted(name for name in names if not name.startswith("model/"))
    select = "SELECT count(*) FROM logged_models WHERE source_run_id = ?"
    models = database.execute(select, (run_id,)).fetchone()[0]
    return {"metrics": metrics, "tags": sorted(tags), "files": files, "models": models}


class Server:
    """Starts commands in a folder that always has the same name, by forks of this process."""

    def __init__(self, base: Path) -> None:
        self.base, self.folder, self.prepared = base, base / "folder", base / "prepared"

    def start(self, action: Callable[[], None], steps: Callable[[int], Steps]) -> Ended:
        """Carry out an action in a process of its own; return how it ended."""
        logs = [self.base / "output", self.base / "steps"]
        for path in logs:
            path.unlink(missing_ok=True)
        process = os.fork()
        if not process:
            os.setsid()
            os.chdir(self.folder)
            log = os.open(logs[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            grids.redirect_output(logs[0])
            steps(log).watch()
            grids.exit_after(action, self.save_modules)
        deadline = time.monotonic() + LIMIT_SECONDS
        while not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if time.monotonic() > deadline:
                os.killpg(process, signal.SIGKILL)
            time.sleep(0.01)
        _, status = os.waitpid(process, 0)
        orphans = has_group(process)
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in logs]
        return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1].splitlines(), orphans)

    def save_modules(self) -> None:
        """Write down what this process has imported."""
        (self.base / "modules").write_text("\n".join(sys.modules))

    def import_modules(self) -> None:
        """Import what the last command that ended had imported: most of its time went there."""
        for name in (self.base / "modules").read_text().splitlines():
            # Some are made by others, and have no file.
            with suppress(Exception):
                importlib.import_module(name)

    def command(self, words: str, fault: str = "", instant: int = -1) -> Ended:
        """Give a command, with a fault at an instant."""
        steps = partial(Steps, self.folder, fault, instant)
        return self.start(partial(run_command, words), steps)

    def prepare(self, flow: Flow) -> None:
        """Fill the folder that each command of a flow begins with."""
        for folder in (self.folder, self.prepared):
            shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "short.toml").write_text(SUITE)
        ended = self.start(flow.prepare, partial(Steps, self.folder, "", -1))
        assert ended.code == 0, ended.text
        self.folder.rename(self.prepared)

    def begin(self) -> None:
        """Bring the prepared folder back."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.prepared, self.folder)


def run_command(words: str) -> None:
    from bench.cli.main import main
    from bench.tuning import storage

    storage.HEARTBEAT_SECONDS, storage.GRACE_SECONDS = 1, 2
    random.seed(os.getpid())
    main(words.split())


def has_group(process: int) -> bool:
    """Return whether a process of a group lives."""
    try:
        os.killpg(process, 0)
    except ProcessLookupError:
        return False
    os.killpg(process, signal.SIGKILL)
    return True


CODES = {"": (0,), "kill": (-signal.SIGKILL,), "term": (0, 130), "disk": (0, 1)}


def complaints(ended: Ended, fault: str) -> list[str]:
    """Return what is wrong with the end of a command: its code or what it said."""
    faults, expected = [], CODES[fault]
    if ended.code not in expected:
        faults.append(f"said: {fault or 'the next command'} ends with {ended.code}")
    lines = ended.text.splitlines()
    errors = [line for line in lines if line.startswith(("error", "interrupted"))]
    is_long = len(errors) > 1 or (ended.code != 0 and len(lines) > MOST_LINES)
    if is_long or "Traceback" in ended.text or "Exception ignored" in ended.text:
        faults.append(f"said: {ended.text[-1500:]}")
    if ended.orphans:
        faults.append("left over: a process")
    return faults


def try_instant(
    server: Server, flow: Flow, fault: str, instant: int, undisturbed: Result
) -> list[str]:
    """Interrupt a command at an instant and give it again; return what is wrong then."""
    server.begin()
    ended = server.command(flow.words, fault, instant)
    # Some have a step more at times, when another process or the clock has a part in it.
    faults = complaints(ended, fault if len(ended.steps) > instant else "")
    if ended.code == 0:
        faults += [f"not whole: {text}" for text in read_result(server.folder).faults(undisturbed)]
    again = server.command(flow.again or flow.words)
    faults += complaints(again, "")
    return faults + read_result(server.folder).faults(undisturbed)


def count_steps(server: Server, flow: Flow) -> tuple[list[str], Result]:
    """Return the steps of an undisturbed command that are instants, and its result."""
    server.prepare(flow)
    server.begin()
    ended = server.command(flow.words)
    server.import_modules()
    assert ended.code == 0, ended.text
    steps = ended.steps
    if flow.last_step:
        steps = steps[: steps.index(flow.last_step) + 2]
    return steps, read_result(server.folder)


def choose(count: int, every: int, sample: int, seed: str) -> list[int]:
    """Return instants: one of so many, or a sample of them, the same for each seed."""
    if sample:
        return sorted(random.Random(seed).sample(range(count), min(sample, count)))
    return list(range(0, count, every))


def try_flow(server: Server, name: str, faults: Sequence[str], options: Any) -> bool:
    """Try a flow with each fault and print what came of it; return whether all is well."""
    flow, start = FLOWS[name], time.monotonic()
    steps, undisturbed = count_steps(server, flow)
    is_well = True
    for fault in faults:
        chosen = choose(len(steps), options.every, options.sample, f"{name} {fault}")
        instants = options.instants or chosen
        counts = Counter[str]()
        for instant in instants:
            wrong = try_instant(server, flow, fault, instant, undisturbed)
            for text in wrong:
                print(f"  {name}, {fault} at {instant} ({steps[instant]}): {text}", flush=True)
            # An instant counts once for each kind.
            counts.update({text.partition(":")[0] for text in wrong})
        is_well &= not counts
        listed = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
        seconds = time.monotonic() - start
        print(
            f"{name}, {fault}: {len(instants)} of {len(steps)} instants: {listed}; {seconds:.0f} s",
            flush=True,
        )
    return is_well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flow", default=",".join(FLOWS))
    parser.add_argument("--fault", default=",".join(FAULTS))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--instants", type=int, nargs="*")
    options = parser.parse_args()
    # What commands import, once.
    import bench.execution.grid.run
    import bench.records.import_
    import bench.tuning.search  # noqa: F401

    os.environ.pop("MLFLOW_TRACKING_URI", None)
    base = "/dev/shm" if Path("/dev/shm").exists() else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        server, faults = Server(Path(folder)), options.fault.split(",")
        is_well = [try_flow(server, name, faults, options) for name in options.flow.split(",")]
    sys.exit(not all(is_well))


if __name__ == "__main__":
    main()
