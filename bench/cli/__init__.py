"""The command line."""

from bench.cli.main import dispatch, main

__all__ = ["dispatch", "main"]
