"""Measure what finished students took over from their teacher, for `bench.analyze`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.analysis.options import AnalyzeOptions
from bench.api.keywords import KeywordReader, call_log, takes_options
from bench.system.errors import BenchError
from bench.system.log import set_verbosity

if TYPE_CHECKING:
    import pandas as pd


@takes_options(AnalyzeOptions)
def analyze(
    runs: str | Sequence[str] = (), *, verbose: bool = False, **options: Any
) -> pd.DataFrame:
    """Measure what finished students took over from their teacher, beside accuracy.

    What is already analysed is skipped. The numbers are logged to the runs and kept in their
    records, as by the command `analyze`.

    Args:
        runs: ids of runs, their first digits, or rows; one or a list. All students without any.
        verbose: print progress.
        options: as below, None for the default.

    Returns: a row for each run with its measures, by their labels: accuracies in [0, 1], NaN where
        a measure is a gap.

    Raises:
        bench.system.errors.BenchError: options are wrong (UsageError), or a run could not be
            analysed, after the others are; the message is that of the command.
    """
    from attacks.isolation import default_state
    from bench.analysis import grid

    names = [runs] if isinstance(runs, str) else [*runs]
    keywords = {"runs": names, **options}
    with call_log("analyze", keywords, verbose), default_state():
        # Warnings of libraries are for the log, as those of the command.
        set_verbosity(quiet=False, verbose=False)
        request = KeywordReader("analyze", keywords).read(AnalyzeOptions)
        spec_ids, failures = grid.analyze_runs(request)
        if failures:
            label, message = next(iter(failures.items()))
            raise BenchError(f"{label}: {message} ({len(failures)} failed)")
        return collect_measures(request.store, spec_ids)


def collect_measures(store: Path, spec_ids: Sequence[str]) -> pd.DataFrame:
    """Return a row for each run with the measures in its record."""
    import pandas as pd

    from bench.records.trained import read_records
    from leaderboards.schema.analysis import ANALYSIS, GROUPS, measure_label, metrics_of_group
    from leaderboards.schema.fields import Tag

    by_spec = {record.spec_id: record for record in read_records(store)}
    rows, metrics = [], dict[str, None]()
    for spec_id in spec_ids:
        record = by_spec[spec_id]
        identity = {"suite": record.spec.suite, **record.spec.identity_tags}
        identity |= {Tag.VARIANT: record.tags.get(Tag.VARIANT, ""), "run_id": record.run_id}
        rows.append({str(name): value for name, value in (identity | record.metrics).items()})
        metrics |= dict.fromkeys(name for name in record.metrics if name.startswith(ANALYSIS))
    lead = [*map(str, identity)] if rows else []
    measured = [name for group in GROUPS for name in metrics_of_group(metrics, group)]
    frame = pd.DataFrame(rows).reindex(columns=[*lead, *measured])
    return frame.rename(columns={name: measure_label(name) for name in measured})
