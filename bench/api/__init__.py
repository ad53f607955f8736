"""What Python programs use: `bench.run`, `bench.evaluate`, `bench.leaderboard`, `bench.load`.

The commands of these names parse flags, call the same functions and print. No torch at import.
"""

from bench.api.evaluation import evaluate
from bench.api.networks import load
from bench.api.runs import run
from bench.api.tables import leaderboard

__all__ = ["evaluate", "leaderboard", "load", "run"]
