"""What a method is, told to the pages by those who know the methods; the record holds its values alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter: its name, default, the range that is searched, and its meaning, as text."""

    name: str
    default: str = ""
    searched: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class About:
    """`title` in a line, the loss as a formula in plain text, and the paper and code that it is from."""

    title: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...]
