"""The files of docs/guides/cluster, and the processes of a grid, as a cluster treats them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from bench.cli.commands import run as run_command
from bench.execution.grid import processes
from bench.execution.grid.processes import Processes, choose_devices
from bench.execution.grid.ray_cluster import count_slots, resources_per_run
from bench.execution.plan import plan_runs
from bench.system.errors import UsageError

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs/guides/cluster").iterdir())
TINY = (
    *("--suite", "digits", "--method", "natural", "--student", "resnet8-w4", "--seeds", "0"),
    *("--epochs", "1", "--limit-train", "64", "--limit-test", "8"),
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_for_a_cluster_has_at_most_twenty_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 20


def shell_words(text: str) -> list[str]:
    (line,) = re.findall(r"python -m bench run (.*)", text)
    return [word.strip('"') for word in line.split()]


def test_what_yaml_files_start_is_a_grid() -> None:
    """Each command is read as the program reads it, for a suite that exists."""
    folder = ROOT / "docs/guides/cluster"
    job = yaml.safe_load((folder / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"][:4] == ["python", "-m", "bench", "run"]
    assert job["spec"]["completionMode"] == "Indexed"
    task = yaml.safe_load((folder / "skypilot.yaml").read_text())
    for words in (container["command"][4:], shell_words(task["run"])):
        options, hyper = run_command.read_request(words)
        assert len(plan_runs(options, hyper)) > 60


@pytest.fixture
def stubs(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job whose `srun` starts one task here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    texts = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/requeued',
        "python": f'exec {sys.executable} "$@"',
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    return {**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}",
            "BENCH_STORE": str(tmp_path / "runs"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/shared.db"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "job"), [("slurm.sh", "7"), ("slurm-array.sh", "7_3")])
def test_a_job_that_is_told_to_stop_queues_itself_again(
    name: str, job: str, tmp_path: Path, stubs: dict[str, str]
) -> None:
    script = ROOT / "docs/guides/cluster" / name
    long = ["400" if word == "1" else word for word in TINY]
    command = ["bash", str(script), *long]
    process = subprocess.Popen(command, env=stubs, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "runs" / "work", "*/state.pt")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; the same command continues" in errors
    assert (tmp_path / "requeued").read_text() == f"requeue {job}\n"
    process = subprocess.Popen(["bash", str(script), *TINY], env=stubs, cwd=ROOT)
    assert process.wait(120) == 0
    assert (tmp_path / "requeued").read_text().count("requeue") == 1, "it ended"


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if [*folder.glob(pattern)]:
            return
        time.sleep(0.1)
    raise TimeoutError(pattern)


def test_a_job_without_a_server_says_so(tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if "MLFLOW" not in name}
    script = ROOT / "docs/guides/cluster/slurm.sh"
    result = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
    assert result.returncode
    assert "MLFLOW_TRACKING_URI: the address of the tracking server" in result.stderr


@pytest.mark.parametrize(
    ("workers", "device", "listed", "expected"),
    [
        ("auto", "cuda", "", ["0", "1", "2"]),
        ("auto", "cuda", "4,6", ["4", "6"]),
        (2, "cuda", "", ["0", "1"]),
        (5, "cuda", "", ["0", "1", "2", "0", "1"]),
        ("auto", "cuda:1", "", [""]),
        (2, "cuda:1", "", ["", ""]),
        ("auto", "cpu", "", [""]),
        (2, "cpu", "", ["", ""]),
    ],
)
def test_each_process_has_a_device_of_its_own(
    workers: int | str, device: str, listed: str, expected: list[str],
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv(processes.VISIBLE_DEVICES, listed)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert choose_devices(workers, torch.device(device)) == expected


def tell_devices() -> Callable[[str], str]:
    """Return what says which device its process sees, and what dies on device 1 when told to."""

    def work(item: str) -> str:
        device = os.environ[processes.VISIBLE_DEVICES]
        if (item, device) == ("die", "1"):
            os.kill(os.getpid(), signal.SIGKILL)
        return device

    return work


def test_processes_see_their_device_and_are_replaced_when_they_die(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(processes.VISIBLE_DEVICES, raising=False)
    with Processes(tell_devices, (), ["0", "1"], "died") as workers:

        def results_of(item: str) -> list[str]:
            workers.start(item)
            workers.start(item)
            assert not workers.has_room()
            results = []
            while workers.busy:
                results += [result for _, result in workers.wait(1.0)]
            return sorted(results)

        assert results_of("live") == ["0", "1"]
        assert processes.VISIBLE_DEVICES not in os.environ
        assert results_of("die") == ["0", "died"]
        assert workers.free_devices == ["1"]
        assert results_of("live") == ["0", "1"]


def test_a_run_on_ray_has_its_share_of_a_node() -> None:
    nodes = [{"Alive": True, "Resources": {"GPU": 8.0, "CPU": 64.0}},
             {"Alive": True, "Resources": {"CPU": 4.0}},
             {"Alive": False, "Resources": {"GPU": 16.0, "CPU": 16.0}}]  # fmt: skip
    assert resources_per_run(nodes, None) == (1.0, 8.0)
    assert resources_per_run(nodes, 0.25) == (0.25, 2.0)
    assert resources_per_run(nodes, 0.01) == (0.01, 1.0)
    assert resources_per_run(nodes, 0.0) == (0.0, 1.0)
    assert resources_per_run(nodes[1:], None) == (0.0, 1.0)
    with pytest.raises(UsageError, match="--gpus-per-run 9: no node has more than 8"):
        resources_per_run(nodes, 9.0)
    assert count_slots(nodes, 1.0, 8.0) == 8
    assert count_slots(nodes, 0.25, 2.0) == 32
    assert count_slots(nodes, 0.0, 1.0) == 68


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--workers 0", "--workers 0: at least 1"),
        ("--ray auto --workers 2", "--ray and --workers: one of them"),
        ("--gpus-per-run 1", "--gpus-per-run: of tasks on Ray, with --ray"),
        ("--ray auto --gpus-per-run -1", "not negative"),
    ],
)
def test_contradictions_are_one_line(flags: str, message: str, tmp_path: Path) -> None:
    words = [*TINY, "--store", str(tmp_path / "runs"), *flags.split()]
    with pytest.raises(UsageError, match=message):
        run_command.run(run_command.read_request(words))
    assert not (tmp_path / "runs").exists()
