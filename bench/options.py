"""The command-line options, one dataclass a verb: defaults, help text and types in one place. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

STORE = Path("runs")
DATA = Path("data")
