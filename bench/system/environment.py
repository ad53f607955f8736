"""The environment of a run: device, versions of libraries, state of the source."""

from __future__ import annotations

import json
import platform
import re
import resource
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.system.errors import UsageError
from bench.version import __version__
from leaderboards.schema.fields import Tag

TORCH_PACKAGES = ("torch", "torchvision", "torchattacks")  # libraries that can alter a result
SOURCE_ROOT = Path(__file__).resolve().parents[2]
STATE_FILE = "source-state.json"  # in the root of a source without git
DEVICE = re.compile("auto|cpu|cuda(:[0-9]{1,2})?|mps")
PACKAGES = (*TORCH_PACKAGES, "optuna", "mlflow", "pandas", "numpy", "scikit-learn")


def resolve_device(name: str) -> torch.device:
    """Return the device of a name, for "auto" the best one. Raise UsageError for a missing one."""
    missing = f"--device {name}: there is no such device here; auto takes the best one"
    # torch knows more, on which nothing here was ever tried, and takes any number of CPUs.
    if not DEVICE.fullmatch(name):
        raise UsageError(missing)
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(missing) from error
    return device


def device_name(device: torch.device) -> str:
    """Return the model of a CUDA device, else the processor with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.processor() or platform.machine()}, {threads} thread{'s' * (threads > 1)}"


def peak_memory(device: torch.device) -> float:
    """Return the peak in bytes: tensors on a CUDA device, elsewhere the process from its start."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    # macOS counts bytes, Linux kibibytes.
    if sys.platform != "darwin":
        peak *= 1024.0
    return peak


def describe_environment(device: torch.device) -> dict[str, object]:
    """Return device, platform and versions of the libraries, by name."""
    values = {"device": str(device), "device_name": device_name(device)}
    values |= {"platform": platform.platform(), "python": platform.python_version()}
    values["bench"] = __version__
    for name in PACKAGES:
        try:
            values[name] = version(name)
        except PackageNotFoundError:
            values[name] = "missing"
    return dict(values)


def source_state() -> dict[str, str]:
    """Return the commit of the source and whether its files differ from it, as tags of a run."""
    try:
        # An installed package may lie inside the checkout of another project.
        if _run_git("ls-files", "--", __file__):
            packages = ("bench", "methods", "attacks")
            changes = _run_git("status", "--porcelain", "--untracked-files=no", "--", *packages)
            dirty = str(bool(changes)).lower()
            return {Tag.CODE_COMMIT: _run_git("rev-parse", "HEAD"), Tag.CODE_DIRTY: dirty}
    except (OSError, subprocess.SubprocessError):
        pass
    # A slice brings what git said where it was packed.
    with suppress(OSError, ValueError):
        state: dict[str, str] = json.loads((SOURCE_ROOT / STATE_FILE).read_text())
        return state
    return {Tag.CODE_COMMIT: "unknown", Tag.CODE_DIRTY: "unknown"}


def _run_git(*words: str) -> str:
    command = ["git", "-C", str(SOURCE_ROOT), *words]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return run.stdout.strip()
