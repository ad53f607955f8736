"""What a run ran on: device, library versions, state of the source."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench import __version__
from bench.system.errors import UsageError

PACKAGES = (
    "torch",
    "torchvision",
    "torchattacks",
    "optuna",
    "mlflow",
    "pandas",
    "numpy",
    "scikit-learn",
)


def resolve_device(name: str) -> torch.device:
    """The device of a name, or the best one there is for "auto". Raises UsageError for one that is not there."""
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device {name}: there is no such device here; auto takes the best one"
        ) from error
    return found


def device_name(found: torch.device) -> str:
    if found.type == "cuda":
        return torch.cuda.get_device_name(found)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def forget_peak(found: torch.device) -> None:
    """What `peak_bytes` tells begins anew."""
    if found.type == "cuda":
        torch.cuda.reset_peak_memory_stats(found)


def peak_bytes(found: torch.device) -> float:
    """The most memory held so far: tensors on a CUDA device, elsewhere the process, from its start."""
    if found.type == "cuda":
        return float(torch.cuda.max_memory_allocated(found))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1.0 if sys.platform == "darwin" else 1024.0
    )


def versions() -> dict[str, str]:
    """Installed versions of the libraries that can alter a result."""
    found = {"python": platform.python_version(), "bench": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def describe_environment(found: torch.device) -> dict[str, object]:
    return {
        "device": str(found),
        "device_name": device_name(found),
        "platform": platform.platform(),
        **versions(),
    }


def source_state() -> dict[str, str]:
    """The source's commit and whether files differ from it; "unknown" where it is not a git checkout."""
    here = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if git("ls-files", "--", __file__) == "":  # installed inside somebody else's checkout
            return {"code_commit": "unknown", "code_dirty": "unknown"}
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", "bench", "methods", "attacks"
        )
        return {"code_commit": git("rev-parse", "HEAD"), "code_dirty": str(bool(changed)).lower()}
    except (OSError, subprocess.SubprocessError):
        return {"code_commit": "unknown", "code_dirty": "unknown"}
