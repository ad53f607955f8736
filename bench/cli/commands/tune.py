"""Search hyper-parameters on validation images, then test the best."""

from dataclasses import dataclass

from bench.cli.parsing import Command
from bench.protocol.options import DryRun
from bench.system.log import set_verbosity
from bench.tuning.options import TuneOptions


@dataclass(frozen=True, kw_only=True)
class TuneCommandOptions(TuneOptions):
    """Search a method's hyper-parameters, learning rate and weight decay on validation images.

    The same command continues a search, and joins it when given on another machine that shares
    the storage. The best configuration is written to STORE/tuned/, trained with the seeds of the
    suite beside the default one, and tested once.
    """

    dry_run: DryRun = False


def tune(options: TuneCommandOptions) -> int:
    """Search; return the exit code."""
    set_verbosity(options.quiet, options.verbose)
    from bench.tuning import search

    return search.tune(options, options.dry_run)


COMMAND = Command(TuneCommandOptions, tune)
