"""The application: command line, protocols, data, networks, training, tracking, execution.

`bench.run`, `bench.evaluate`, `bench.leaderboard` and `bench.load` are for Python programs.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bench.version import __version__

__all__ = ["__version__", "evaluate", "leaderboard", "load", "run"]

if TYPE_CHECKING:
    from bench.api import evaluate, leaderboard, load, run
else:
    # Most users of this package's constants need none of them.
    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("bench.api"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
