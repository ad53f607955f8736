"""`bench` imports the leaves, no leaf imports `bench` or another leaf, and start-up is light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bench

ROOT = Path(bench.__file__).parent.parent
LEAVES = ("methods", "attacks", "leaderboards")
SOURCES = [path for name in ("bench", *LEAVES) for path in sorted((ROOT / name).rglob("*.py"))]
# The packages that no file of a package may import.
BARRED = {
    "bench": set(),
    "methods": {"bench", "attacks", "leaderboards"},
    "attacks": {"bench", "methods", "leaderboards"},
    "leaderboards": {"bench", "methods", "attacks", "torch"},
}


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, anywhere in it."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.add(node.module.split(".")[0])
    return packages


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_direction_of_imports(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert not imported_packages(path) & BARRED[package]


@pytest.mark.parametrize("leaf", LEAVES)
def test_importing_a_leaf_loads_no_other_package(leaf: str) -> None:
    packages = {"bench", *LEAVES, "torch", "mlflow"}
    code = f"import sys, {leaf}; print(*({packages!r} & sys.modules.keys()))"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == [leaf]


@pytest.mark.timed
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_starts_fast(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "bench", *arguments]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.7
