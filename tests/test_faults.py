"""Commands interrupted at a few of their steps; `tox -e faults` tries all of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("faults.py")


@pytest.mark.slow
def test_what_is_interrupted_loses_and_doubles_nothing() -> None:
    # First starts are in test_store.py.
    flows = ("run", "forced run", "tune", "import", "teacher import")
    command = [sys.executable, str(PROGRAM), "--sample", "1", "--flow", ",".join(flows)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    lines = result.stdout.splitlines()
    assert len(lines) == len(flows) * 3
    assert all(re.search(r": 1 of \d+ instants: 0 lost, 0 doubled, ", line) for line in lines)
