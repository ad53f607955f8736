"""Runs as tasks of a real Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grids
import pytest
from mlflow import MlflowClient

from bench.cli.main import main
from bench.execution.cost import Cost
from bench.execution.grid.ray_cluster import execute_on_node
from bench.execution.grid.work import QueuedRun
from bench.execution.plan import plan_runs
from bench.protocol.options import RunOptions
from bench.tracking.claims import read_claims

cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of a head without cores and two nodes of one core each."""
    nodes = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes.workers = [nodes.add_node(num_cpus=1) for _ in range(2)]
    yield nodes
    nodes.shutdown()


def start_grid(folder: Path, address: str, *words: str) -> subprocess.Popen[str]:
    """Start a command that hands a grid of short runs to a cluster."""
    (folder / "short.toml").write_text(grids.SUITE)
    command = [sys.executable, "-m", "bench", "run", "--suite", str(folder / "short.toml")]
    command += ["--method", "natural,pgd_at", "--store", str(folder / "runs"), *grids.WORDS[:-1]]
    return subprocess.Popen(
        [*command, "--ray", address, *words], stderr=subprocess.PIPE, text=True, cwd=folder
    )


def count_records(folder: Path) -> int:
    return len([*(folder / "runs" / "records").glob("*.json")])


def find_run(raylet: int, folder: Path) -> int | None:
    """Return the process of a node that is at a run, if any."""
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    pids = {c.pid for e in client.search_experiments() for c in read_claims(e.tags)}
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    return next(iter(pids & {*map(int, children)}), None)


def stop_run(raylet: int, folder: Path) -> int | None:
    """Stop a process of a node in the middle of a run; return it, if there was one."""
    process = find_run(raylet, folder)
    if process is None:
        return None
    os.kill(process, signal.SIGSTOP)
    # Its run may have ended before it was stopped.
    if find_run(raylet, folder) == process:
        return process
    os.kill(process, signal.SIGCONT)
    return None


@pytest.mark.slow
def test_a_grid_outlives_a_node(tmp_path: Path, cluster: Any) -> None:
    process = start_grid(tmp_path, cluster.address)
    deadline = time.monotonic() + 300
    raylet = cluster.workers[0].all_processes["raylet"][0].process.pid
    stopped = None
    while stopped is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
        stopped = stop_run(raylet, tmp_path) if count_records(tmp_path) else None
    cluster.remove_node(cluster.workers[0], allow_graceful=False)
    os.kill(stopped, signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    outcome = grids.read_outcome("", [tmp_path / "runs"])
    assert len(outcome.records) == 12
    assert not outcome.faults(outcome)
    assert "died; it is tried once more" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "words", "message"),
    [
        ("127.0.0.1:9", [], "--ray 127.0.0.1:9: the cluster cannot be reached"),
        ("local", ["--gpus-per-run", "2"], "--gpus-per-run 2: no node has more than 0"),
    ],
)
def test_a_cluster_that_will_not_do_is_one_line(
    address: str, words: list[str], message: str, tmp_path: Path
) -> None:
    start = time.monotonic()
    process = start_grid(tmp_path, address, "--quiet", *words)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert time.monotonic() - start < 90
    assert not (tmp_path / "runs").exists()


def test_a_node_that_does_not_share_the_folder_stops_the_grid(tmp_path: Path) -> None:
    options = RunOptions(store=tmp_path, method="natural", student="resnet8-w4", seeds="0")
    item = QueuedRun(1, plan_runs(options, {})[0], Cost(1.0, 1.0, 1.0))
    outcome = execute_on_node(options, item, 1, 1.0, str(tmp_path / "token"))
    assert outcome.end == "stop"
    assert "does not share the folder" in outcome.message
    assert "set MLFLOW_TRACKING_URI to a server" in outcome.message
    assert not [*tmp_path.iterdir()]


def test_without_the_package_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["--method", "natural", "--student", "resnet8-w4", "--seeds", "0", "--ray", "auto"]
    with pytest.raises(SystemExit) as end:
        main(["run", *words, "--store", str(tmp_path / "runs")])
    assert end.value.code == 2
    assert "pip install 'robust-distill-bench[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
