"""The description of a method that callers hand to the pages; a record holds its values only."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class HyperParameter:
    """A hyper-parameter as text: its name, default, searched range and meaning."""

    name: str
    default: str = ""
    searched: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class OfficialSetting:
    """What the authors' script does otherwise; `default` is empty for a setting of the training."""

    name: str
    value: str
    default: str
    reason: str


@dataclass(frozen=True)
class PaperCard:
    """Where a method was published. `url` is empty where no page could be checked."""

    authors: str
    title: str
    venue: str
    year: int
    url: str = ""

    @property
    def published(self) -> str:
        """Venue and year, "ICCV 2021"."""
        return f"{self.venue} {self.year}"


@dataclass(frozen=True)
class MethodCard:
    """A title of one line, the loss as plain text, what it is from, and its parameters.

    teachers: the roles that it reads. official: what `--official` sets. mathml: the loss as an
    element of MathML that pages embed as it is, "" for none.
    """

    title: str
    formula: str
    source: str
    parameters: tuple[HyperParameter, ...]
    teachers: tuple[str, ...] = ()
    paper: PaperCard | None = None
    official: tuple[OfficialSetting, ...] = ()
    mathml: str = ""

    @property
    def family(self) -> str:
        """Control without a paper, else teacher-free or, if it reads a teacher, distiller."""
        if self.paper is None:
            return "control"
        return "distiller" if self.teachers else "teacher-free"

    @property
    def symbols(self) -> str:
        """What the formula's paragraphs after the first say: the meaning of its symbols."""
        return self.formula.partition("\n\n")[2]

    @property
    def full_name(self) -> str:
        """The title up to its acronym or explanation: "Fair RSLAD" of "Fair RSLAD: weights"."""
        return re.split(r" \(|: |, |\.$", self.title)[0]
