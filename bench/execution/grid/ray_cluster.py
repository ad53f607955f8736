"""An executor on a Ray cluster: a task a run.

Ray places tasks, and the tracking store says what is done.
"""

from __future__ import annotations

import os
import platform
import socket
import uuid
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bench.execution.grid.work import QueuedRun, RunOutcome, Worker, execute_beside_others
from bench.protocol.options import ProtocolOptions
from bench.system.database import sqlite_file
from bench.system.environment import resolve_device, source_state
from bench.system.errors import UsageError, one_line
from bench.tracking.store import LOCKS, tracking_uri

if TYPE_CHECKING:
    from types import ModuleType

LOCAL = "local"  # a cluster of this machine alone, for the time of the command
CONNECT_SECONDS = 10.0
# What decides where a task finds the tracking store, and how MLflow behaves there.
PASSED_VARIABLES = ("MLFLOW_", "AWS_", "OMP_NUM_THREADS", "PYTHONPATH")


class OnRay:
    """Carries out runs as tasks of a Ray cluster, which is left as it was.

    Raise UsageError for a cluster that cannot be reached, or has no node with enough GPUs.
    """

    def __init__(self, options: ProtocolOptions, total: int) -> None:
        self.ray, self.total = connect(options.ray), total
        nodes = self.ray.nodes()
        gpus, cpus = resources_per_run(nodes, options.gpus_per_run)
        self.slots = count_slots(nodes, gpus, cpus)
        # Tasks have working folders of their own. Ray hides no device from one without GPUs.
        store, data_root = options.store.absolute(), options.data_root.absolute()
        device = options.device if gpus else "cpu"
        self.options = replace(options, store=store, data_root=data_root, device=device)
        self.token = store / LOCKS / f"ray-{uuid.uuid4().hex}"
        # A retry is the grid's matter: it may be the store or another command that goes on.
        task = self.ray.remote(num_gpus=gpus, num_cpus=cpus, max_retries=0)
        self.task = task(execute_on_node)
        self.cpus = cpus
        self.items: dict[Any, QueuedRun] = {}  # task -> run

    def __enter__(self) -> OnRay:
        self.token.parent.mkdir(parents=True, exist_ok=True)
        self.token.touch()
        return self

    def __exit__(self, *_: object) -> None:
        for task in self.items:
            with suppress(Exception):
                self.ray.cancel(task, force=True)
        self.ray.shutdown()
        self.token.unlink(missing_ok=True)

    def has_room(self) -> bool:
        """Return true: tasks wait in the cluster."""
        return True

    def start(self, item: QueuedRun) -> None:
        """Give a run to the cluster."""
        task = self.task.remote(self.options, item, self.total, self.cpus, str(self.token))
        self.items[task] = item

    def wait(self, seconds: float) -> list[tuple[QueuedRun, RunOutcome]]:
        """Return the runs that ended, after at most so long."""
        if not self.items:
            return []
        done, _ = self.ray.wait(list(self.items), num_returns=1, timeout=seconds)
        ended = []
        for task in done:
            try:
                outcome = self.ray.get(task)
            # A worker, a node or its memory may be gone, or the code of a node is another one.
            except self.ray.exceptions.RayTaskError as error:
                outcome = RunOutcome("failed", f"failed: {one_line(error.cause or error)}")
            except self.ray.exceptions.RayError:
                outcome = RunOutcome("died")
            ended.append((self.items.pop(task), outcome))
        return ended


def import_ray() -> ModuleType:
    """Return the package. Raise UsageError without it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--ray: run `pip install 'robust-distill-bench[ray]'` first") from error
    return ray


def check_cluster(options: ProtocolOptions) -> None:
    """Raise UsageError for a cluster that cannot be reached, or has no node with enough GPUs."""
    resources_per_run(connect(options.ray).nodes(), options.gpus_per_run)


def connect(address: str) -> ModuleType:
    """Return the package, connected to a cluster, which it starts for LOCAL."""
    ray = import_ray()
    if ray.is_initialized():
        return ray
    check_reachable(address)
    passed = [name for name in os.environ if name.startswith(PASSED_VARIABLES)]
    settings: dict[str, Any] = {"runtime_env": {"env_vars": {n: os.environ[n] for n in passed}}}
    if address == LOCAL:
        settings["include_dashboard"] = False
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **settings)
    # Ray's errors of a connection have no common class.
    except Exception as error:
        reason = one_line(error, 160)
        raise UsageError(f"--ray {address}: the cluster cannot be reached: {reason}") from error
    return ray


def check_reachable(address: str) -> None:
    """Raise UsageError if nothing listens at HOST:PORT, for which Ray would wait minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = one_line(error, 160)
        raise UsageError(f"--ray {address}: the cluster cannot be reached: {reason}") from error


def resources_per_run(nodes: list[dict[str, Any]], gpus: float | None) -> tuple[float, float]:
    """Return the GPUs and the CPUs that a run gets: its share of the cores of a node with GPUs.

    gpus: as asked for; None: one if there are any. Raise UsageError for more than a node has.
    """
    living = [node["Resources"] for node in nodes if node["Alive"]]
    most = max((node.get("GPU", 0.0) for node in living), default=0.0)
    gpus = min(most, 1.0) if gpus is None else gpus
    if gpus > most:
        raise UsageError(f"--gpus-per-run {gpus:g}: no node has more than {most:g}")
    if not gpus:
        return 0.0, 1.0
    cores = min(node.get("CPU", 1.0) / node["GPU"] for node in living if node.get("GPU"))
    return gpus, max(float(int(cores * gpus)), 1.0)


def count_slots(nodes: list[dict[str, Any]], gpus: float, cpus: float) -> int:
    """Return how many runs the nodes have room for at once, at least one."""
    slots = 0
    for node in nodes:
        if node["Alive"]:
            resources = node["Resources"]
            by_cpus = resources.get("CPU", 0.0) // cpus
            slots += int(min(by_cpus, resources.get("GPU", 0.0) // gpus) if gpus else by_cpus)
    return max(slots, 1)


def execute_on_node(
    options: ProtocolOptions, item: QueuedRun, total: int, cpus: float, token: str
) -> RunOutcome:
    """Carry out a run in a task; return how it ended."""
    if sqlite_file(tracking_uri(options.store)) and not Path(token).exists():
        host, remedy = platform.node(), "set MLFLOW_TRACKING_URI to a server"
        return RunOutcome("stop", f"{host} does not share the folder {options.store}: {remedy}")
    torch.set_num_threads(int(cpus))
    return execute_beside_others(partial(worker_of_process, options), item, total)


@cache
def worker_of_process(options: ProtocolOptions) -> Worker:
    """Return the worker of this process, which Ray gives several tasks."""
    # The commit is that of the node.
    return Worker.open(options, resolve_device(options.device), source_state())
