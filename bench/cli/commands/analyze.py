"""Measure what finished students took over from their teacher, beside accuracy."""

from bench.analysis.options import AnalyzeOptions
from bench.cli.parsing import Command
from bench.system.log import set_verbosity


def analyze(options: AnalyzeOptions) -> int:
    """Analyse runs; return the exit code."""
    set_verbosity(options.quiet, options.verbose)
    from bench.analysis import grid

    return grid.analyze(options)


COMMAND = Command(AnalyzeOptions, analyze)
