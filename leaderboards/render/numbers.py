"""Numbers and commands as tables and pages show them: accuracies in percent, times in minutes."""

from __future__ import annotations

import math

from leaderboards.schema.metrics import describe_metric
from leaderboards.tables.rows import Column, Row, SeedSummary


def format_cell(summary: SeedSummary, column: Column) -> str:
    """Format "45.3", "45.3 ± 1.2" with several seeds, "-" where nothing was measured."""
    if not summary.n:
        return "-"
    metric = describe_metric(column.metric)
    decimals = metric.decimals
    spread = "" if math.isnan(summary.sd) else f" ± {summary.sd * metric.scale:.{decimals}f}"
    return f"{summary.mean * metric.scale:.{decimals}f}{spread}"


def format_interval(row: Row) -> str:
    """Format the interval of the ranking number: "[77.9, 86.0]", or "" where there is none."""
    if row.ranking.interval is None:
        return ""
    low, high = row.ranking.interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def format_ranks(ranks: tuple[int, int] | None) -> str:
    """Format "1", "1 to 16" for a range, "-" for none."""
    return " to ".join(map(str, dict.fromkeys(ranks))) if ranks else "-"


def format_percent(value: float, unit: str = "") -> str:
    """Format a fraction in percent; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}{unit}"


def format_count(count: int, noun: str) -> str:
    """Format "1 run", "2,000 runs"."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def first_command(suite: str | None) -> str:
    """Return the command for a first run of "digits" or "digits@1"; None: of the default."""
    return f"python -m bench run --method gacd --suite {(suite or 'digits').partition('@')[0]}"


# For templates.
FORMATS = {
    "format_cell": format_cell, "format_count": format_count, "format_interval": format_interval,
    "format_percent": format_percent, "format_ranks": format_ranks, "first_command": first_command,
}  # fmt: skip
