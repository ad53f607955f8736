"""What measures return: numbers, matrices, lines and points by name, and gaps with a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leaderboards.schema.analysis import measure_name


class GapError(Exception):
    """A group of measures cannot be made; the message says why, in one line."""


@dataclass
class Findings:
    """Results of measures, under the names of leaderboards/schema/analysis.py.

    numbers: by metric. matrices: rows. lines: (x, y). points: (x, y, class). gaps: reason by name.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    matrices: dict[str, list[list[float]]] = field(default_factory=dict)
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    points: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)

    def add(self, value: float, group: str, measure: str, *parts: str) -> None:
        """Add a number; one that is not finite is a gap."""
        name = measure_name(group, measure, *parts)
        if value == value and abs(value) != float("inf"):
            self.numbers[name] = float(value)
        else:
            self.gaps["/".join((group, measure, *parts))] = "undefined here: not a finite number"

    def add_measured(
        self, name: tuple[str, ...], function: Callable[..., float], *values: Any
    ) -> None:
        """Add what a function makes of values, under (group, measure, *parts).

        A GapError that it raises is a gap of this name.
        """
        try:
            self.add(function(*values), *name)
        except GapError as error:
            self.gaps["/".join(name)] = str(error)

    def update(self, other: Findings) -> None:
        """Take over the results of another group."""
        for name in vars(self):
            getattr(self, name).update(getattr(other, name))
