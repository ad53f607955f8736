"""Several equal commands on one grid of short runs, killed and restarted: a harness for tests.

    python tests/grids.py --store http --commands 4 --repetitions 10 --kill-every 4

prints what each repetition came to. Each command is a process that was forked from one with all
packages imported, so that a grid of short runs is about its runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import server

# Two seconds a run, half of it MLflow's: no AutoAttack.
SUITE = """
name = "short"
base = "digits"
students = ["resnet8-w4"]
seeds = [0, 1, 2, 3, 4, 5]
attacks = ["fgsm"]
full_checkpoints = ["best"]
training.epochs = 2
teachers.robust.arch = "resnet8-w4"
teachers.robust.training.epochs = 2
teachers.natural.arch = "resnet8-w8"
teachers.natural.training.epochs = 2
"""
WORDS = ("--limit-train", "64", "--limit-test", "16", "--quiet")
METHODS = "natural,rslad"
TIMES = "cost/"


@dataclass
class Outcome:
    """What a grid came to: records, parents and claims that are left, and how it went."""

    records: dict[str, dict[str, object]]
    runs: Counter[str]  # finished runs of each spec
    unfinished: int
    parents: Counter[str]
    claims: int
    seconds: float
    kills: int = 0
    exit_codes: list[int] = field(default_factory=list)

    def faults(self, undisturbed: Outcome) -> list[str]:
        """Return what differs from a grid that nothing disturbed."""
        lost = undisturbed.records.keys() - self.records.keys()
        faults = [f"lost: {name}" for name in sorted(lost)]
        faults += [f"doubled: {spec} {count}" for spec, count in self.runs.items() if count != 1]
        faults += [f"parents: {row} {count}" for row, count in self.parents.items() if count != 1]
        for name, content in self.records.items():
            if undisturbed.records.get(name) != content:
                faults.append(f"another result: {name}")
        if self.claims:
            faults.append(f"{self.claims} claims are left")
        return faults


@contextmanager
def tracking_store(kind: str, folder: Path) -> Iterator[TrackingAddress]:
    """A tracking store that all commands share."""
    if kind == "sqlite":
        yield TrackingAddress(f"sqlite:///{folder}/shared.db")
    elif kind == "postgresql":
        with server.postgresql() as address:
            yield TrackingAddress(address)
    else:
        with MlflowServer(folder) as http:
            yield TrackingAddress(http.address, http.restart)


@dataclass(frozen=True)
class TrackingAddress:
    """Where a tracking store is; restart: kills its server and starts it again, if it has one."""

    address: str
    restart: Callable[[], None] = lambda: None


class MlflowServer:
    """A real MLflow server on loopback, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, server.free_port()
        self.address = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        words += ["--artifacts-destination", str(self.folder / "served"), "--port", str(self.port)]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", *words]
        # Its workers for jobs would outlive it, in sessions of their own.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=environment
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.address}/health", timeout=2).read()
                return
            time.sleep(0.2)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def restart(self) -> None:
        """Kill it and start it again, which takes some seconds."""
        self.kill()
        self.start()

    def kill(self) -> None:
        """Kill it and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def fork_command(words: Sequence[str], address: str, log: Path) -> int:
    """Start a command of the program in a forked process; return its id."""
    if process := os.fork():
        return process
    redirect_output(log)
    if address:
        os.environ["MLFLOW_TRACKING_URI"] = address
    from bench.cli.main import main

    random.seed(os.getpid())
    exit_after(lambda: main(words))


def redirect_output(log: Path) -> None:
    """Append what this process prints to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def exit_after(action: Callable[[], None], last: Callable[[], None] = lambda: None) -> NoReturn:
    """End a forked process after an action, with its exit code; `last` comes in the end.

    What the first process registered for its exit, such as folders to remove, stays.
    """
    code = 70
    try:
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        last()
        os._exit(code)


def run_grid(
    folder: Path,
    address: str,
    roots: Sequence[Path],
    kill_every: float = 0.0,
    restart: Callable[[], None] | None = None,
    methods: str = METHODS,
) -> Outcome:
    """Drain the grid by a command for each root; each that is killed is started again.

    kill_every: seconds between kills, of a command or, with `restart`, of the server.
    """
    suite, start = folder / "short.toml", time.monotonic()
    suite.write_text(SUITE)
    rng, kills, codes = random.Random(0), 0, []

    def begin(root: Path) -> int:
        words = ["run", "--suite", str(suite), "--method", methods, "--store", str(root), *WORDS]
        return fork_command(words, address, folder / "commands.log")

    running = {begin(root): root for root in roots}
    next_kill = time.monotonic() + kill_every
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process in running:
            root = running.pop(process)
            code = os.waitstatus_to_exitcode(status)
            codes.append(code)
            if code == -signal.SIGKILL:
                running[begin(root)] = root
            continue
        time.sleep(0.05)
        if kill_every and time.monotonic() > next_kill:
            if restart:
                restart()
            else:
                os.kill(rng.choice(list(running)), signal.SIGKILL)
            kills += 1
            next_kill = time.monotonic() + rng.uniform(0.2, 1.8) * kill_every
    seconds = time.monotonic() - start
    if any(code > 0 for code in codes):
        print((folder / "commands.log").read_text()[-2000:])
    outcome = read_outcome(address, roots)
    outcome.seconds, outcome.kills, outcome.exit_codes = seconds, kills, codes
    return outcome


def read_outcome(address: str, roots: Sequence[Path]) -> Outcome:
    """Return what a tracking store holds."""
    from mlflow import MlflowClient

    from bench.records.sync import sync_records
    from bench.tracking.claims import read_claims
    from bench.tracking.store import tracking_uri

    if address:
        os.environ["MLFLOW_TRACKING_URI"] = address
    try:
        client = MlflowClient(tracking_uri(roots[0]))
        records = sync_records(roots[0]).folder
        (experiment,) = [e for e in client.search_experiments() if e.name.startswith("short")]
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    runs, parents, unfinished = Counter[str](), Counter[str](), 0
    for run in client.search_runs([experiment.experiment_id], max_results=5000):
        tags = run.data.tags
        if tags.get("role") == "group":
            row = ("dataset", "student", "method", "teacher", "variant")
            parents[" ".join(tags[name] for name in row)] += 1
        elif run.info.status == "FINISHED":
            runs[tags["spec_id"]] += 1
        else:
            unfinished += 1
    contents = {path.name: comparable(path) for path in records.glob("*.json")}
    claims = len(read_claims(experiment.tags))
    return Outcome(contents, runs, unfinished, parents, claims, 0.0)


def comparable(path: Path) -> dict[str, object]:
    """Return what two runs of one spec must have alike: all but times, ids and the machine."""
    content = json.loads(path.read_text())
    metrics = {n: x for n, x in content["metrics"].items() if not n.startswith(TIMES)}
    names = ("spec", "checksums", "curves", "classes")
    return {**{name: content[name] for name in names}, "metrics": metrics}


def repeat(arguments: argparse.Namespace) -> Iterator[tuple[Outcome, list[str]]]:
    """Yield the outcome of each repetition, and what differs from the first, undisturbed grid."""
    undisturbed: Outcome | None = None
    for number in itertools.count():
        if number > arguments.repetitions:
            return
        with ExitStack() as stack:
            base = "/dev/shm" if Path("/dev/shm").exists() else None
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=base)))
            folder.chmod(0o755)
            store = stack.enter_context(tracking_store(arguments.store, folder))
            methods = arguments.methods
            if undisturbed is None:
                root = [folder / "root"]
                undisturbed = run_grid(folder, store.address, root, methods=methods)
                yield undisturbed, undisturbed.faults(undisturbed)
                continue
            # Half of the commands share a folder, as on one host; the others have their own.
            roots = [folder / f"root{n // 2}" for n in range(arguments.commands)]
            restart = store.restart if arguments.kill == "server" else None
            seconds = arguments.kill_every
            outcome = run_grid(folder, store.address, roots, seconds, restart, methods)
            faults = outcome.faults(undisturbed)
            if faults and arguments.keep:
                shutil.copytree(folder, arguments.keep / str(number), dirs_exist_ok=True)
            yield outcome, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=("sqlite", "postgresql", "http"), default="sqlite")
    parser.add_argument("--commands", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--kill-every", type=float, default=0.0)
    parser.add_argument("--kill", choices=("command", "server"), default="command")
    parser.add_argument("--methods", default=METHODS, help="six runs each")
    parser.add_argument("--keep", type=Path, help="where the folders of grids that differ go")
    arguments = parser.parse_args()
    import bench.execution.grid.run
    import bench.records.sync  # noqa: F401

    for outcome, faults in repeat(arguments):
        text = f"{len(outcome.records)} records in {outcome.seconds:.0f} s, {outcome.kills} kills"
        text += f", {outcome.unfinished} unfinished runs, exit codes {outcome.exit_codes}"
        print(f"{text}: {'; '.join(faults) or 'as undisturbed'}", flush=True)


if __name__ == "__main__":
    main()
