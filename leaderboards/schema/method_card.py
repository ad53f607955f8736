"""The description of a method that callers hand to the pages; a record holds its values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HyperParameter:
    """A hyper-parameter as text: its name, default, searched range and meaning."""

    name: str
    default: str = ""
    searched: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class MethodCard:
    """A title of one line, the loss as plain text, its paper and code, and its parameters."""

    title: str
    formula: str
    source: str
    parameters: tuple[HyperParameter, ...]
