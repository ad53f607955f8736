"""Several equal commands on one grid, killed at random.

`python tests/grids.py` and `python tests/many_claims.py` do more of it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def outcomes(*words: str) -> list[str]:
    """Return a line for each repetition, the undisturbed one first."""
    command = [sys.executable, str(FOLDER / "grids.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--store sqlite --commands 2 --kill-every 4 --methods rslad",
        "--store postgresql --commands 3 --kill-every 5 --methods rslad",
    ],
    ids=["sqlite", "postgresql"],
)
def test_what_is_killed_loses_and_doubles_nothing(words: str) -> None:
    undisturbed, disturbed = outcomes(*words.split())
    assert undisturbed.endswith("0 kills, 0 unfinished runs, exit codes [0]: as undisturbed")
    assert disturbed.endswith(": as undisturbed")
    assert " 0 kills" not in disturbed


@pytest.mark.slow
def test_many_processes_share_many_runs_out() -> None:
    command = [sys.executable, str(FOLDER / "many_claims.py"), "--runs", "30", "--workers", "8"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.startswith("30 of 30 runs by 8 processes in ")
    assert "s, 0 doubled, 0 claims left, 0 workers failed, status of 30 in " in result.stdout
