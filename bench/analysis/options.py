"""The options of `analyze`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional

from bench.protocol.options import CommonOptions, Quiet, Switch, Verbose, Workers, option


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions(CommonOptions):
    """Measure what finished students took over from their teacher, beside accuracy.

    Structure, features, gradients and transfer, logged to the runs and kept in their records. What
    is already analysed is skipped. A row is SUITE/DATASET/STUDENT/METHOD, all its seeds.
    """

    runs: Positional[
        Annotated[tuple[str, ...], option("RUN|ROW", "ids of runs, their first digits, or rows")]
    ] = ()
    suite: Annotated[
        str, option("NAME|FILE.toml", "all students of a suite, such as digits or digits@3")
    ] = ""
    workers: Workers = 1
    force: Annotated[Switch, option(text="repeat what is already analysed")] = False
    quiet: Quiet = False
    verbose: Verbose = False
