"""The application: command line, protocols, data, networks, training, tracking, execution.

`bench.run`, `bench.evaluate`, `bench.analyze`, `bench.leaderboard` and `bench.load` are for Python
programs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bench.version import __version__

__all__ = ["__version__", "analyze", "evaluate", "leaderboard", "load", "run"]

if TYPE_CHECKING:
    from bench.api.analysis import analyze
    from bench.api.evaluation import evaluate
    from bench.api.networks import load
    from bench.api.runs import run
    from bench.api.tables import leaderboard
else:
    MODULES = {
        "analyze": "analysis",
        "evaluate": "evaluation",
        "leaderboard": "tables",
        "load": "networks",
        "run": "runs",
    }

    def __getattr__(name: str) -> object:
        """Import a function when it is asked for: most users of this package need none."""
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"bench.api.{MODULES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
