"""Packages that tests install by hand, and the folder where they lie."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import methods

PACKAGES = ("attacks", "bench", "leaderboards", "methods")


def install_package(
    folder: Path, group: str, name: str, code: str, target: str = "", package: str = ""
) -> None:
    """Install a package into `folder` whose one module `code` offers a value as an entry point.

    target: what the module calls the value; the module itself without one.
    """
    package = package or f"pack-{name}"
    module = package.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{module}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    address = f"{module}:{target}" if target else module
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {address}\n")


def copy_packages(folder: Path) -> None:
    """Copy the benchmark's packages, for a test that adds to one of their files."""
    root = Path(methods.__file__).parents[1]
    for name in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / name, folder / name, ignore=ignore)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages on the path; signal handlers and modules are restored."""
    monkeypatch.syspath_prepend(tmp_path)
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for name, handler in handlers.items():
        signal.signal(name, handler)
    for name in [name for name in sys.modules if name.startswith("pack_")]:
        del sys.modules[name]
