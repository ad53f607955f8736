"""The star of the design: `bench` imports the leaves, no leaf imports `bench` or another leaf; start-up stays light."""

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


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_direction_of_imports(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    barred = {"bench": set(), "leaderboards": {"bench", "methods", "attacks", "torch"}}.get(
        package, {"bench", *LEAVES} - {package}
    )
    assert not imported(path) & barred


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_brings_no_other_package(leaf: str) -> None:
    code = f"import sys, {leaf}; print(*sorted({{'bench', *{LEAVES!r}, 'torch', 'mlflow'}} & sys.modules.keys()))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert loaded == [leaf]


@pytest.mark.timed
@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_is_quick(words: list[str]) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "bench", *words], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.7
