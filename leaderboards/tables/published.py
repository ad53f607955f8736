"""What papers report for the task of a row, beside what was measured here and never among it.

published.csv has one published number a line, in percent, with the place where it stands: AutoAttack ("aa") and clean
accuracy on CIFAR-10 and CIFAR-100 of students that the benchmark has too, under its names for method, data and student.
A network that teaches has one name throughout; `note` gives the other that a paper uses. Where `note` says "second hand"
the number was read in a text that quotes the paper. A number that one paper copies from another stands once, under the
paper that measured it. `igdm` is IGDM on AdaAD and `iad` is IAD-I.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards.schema import fields

if TYPE_CHECKING:
    import pandas as pd

HEAD = "Published AA"
ABOUT = (
    f"{HEAD}, not measured here and no part of the ranking: the lowest to the highest AutoAttack accuracy published for "
    "the same method, data and student, and by how many points ours lies outside. Teachers (only those named as ours, "
    "where there are any), schedules and checkpoint rules differ; many checkpoints were chosen on the test set."
)
KEYS = ["dataset", "student", "method", "teacher"]
ATTACKS = ("clean", "aa")
TEST_IMAGES, EPS = 10_000, 8 / 255  # of every number in the file


@dataclass(frozen=True)
class Published:
    """The lowest and highest of some published accuracies, in [0, 1], and the papers or reports they are from."""

    low: float
    high: float
    teachers: str  # "this teacher", "any teacher", or "" for a method without one
    sources: tuple[str, ...]

    def difference(self, ours: float) -> float:
        """How far `ours` lies above the highest or, negative, below the lowest value; 0 between them, NaN for NaN."""
        return ours - min(max(ours, self.low), self.high)

    @property
    def span(self) -> str:
        """ "40.57 to 52.21", or a lone value, with the decimals of the papers."""
        return " to ".join(dict.fromkeys(f"{100 * end:.2f}" for end in (self.low, self.high)))

    def remark(self, ours: float) -> str:
        """ "3 sources, any teacher; ours 1.2 below"; nothing about ours where it is NaN."""
        count = "1 source" if len(self.sources) == 1 else f"{len(self.sources)} sources"
        outside = f"{100 * self.difference(ours):+.1f}"
        where = (
            "within"
            if outside[1:] == "0.0"
            else f"{outside[1:]} {'above' if outside[0] == '+' else 'below'}"
        )
        what = ", ".join(filter(None, (count, self.teachers)))
        return what if math.isnan(ours) else f"{what}; ours {where}"


def find(runs: Sequence[Mapping[Any, Any]]) -> Published | None:
    """AutoAttack as published for the runs of one row; None where it is not, or unless all are `as_published`."""
    found = lookup(*(runs[0][key] for key in KEYS), "aa")
    return found if found and all(run["as_published"] for run in runs) else None


def footnote(found: Iterable[Published | None]) -> str:
    """What stands under a table with these values, one for each row: ABOUT with the sources, "" where all are None."""
    sources = dict.fromkeys(source for each in found if each for source in each.sources)
    return f"{ABOUT} Sources: {'; '.join(sources)}." if sources else ""


def beside(runs: pd.DataFrame) -> pd.DataFrame:
    """store.collect's frame with columns "published/..." at its end, where anything is published for one of its runs."""
    import pandas as pd

    told = fields.lines(runs.reindex(columns=[*KEYS, *(f"test/{attack}" for attack in ATTACKS)]))
    columns = [
        _columns(run) if same else {} for run, same in zip(told, same_task(runs), strict=True)
    ]
    return pd.concat([runs, pd.DataFrame(columns, index=runs.index)], axis="columns")


@cache
def lookup(dataset: str, student: str, method: str, teacher: str, attack: str) -> Published | None:
    """The published values of a cell; those with a teacher of the same name where there are any, else all."""
    rows = _cells().get((dataset, student, method, attack))
    if rows is None:
        return None
    own = rows[rows["teacher"].map(_words) == _words(teacher)]
    chosen = rows if own.empty else own
    teachers = "any teacher" if own.empty else "this teacher" if teacher != "none" else ""
    low, high = (
        round(percent / 100, 4) for percent in chosen["accuracy_percent"].agg(["min", "max"])
    )
    return Published(low, high, teachers, tuple(chosen["source"].unique()))


def _columns(run: dict[Any, Any]) -> dict[str, Any]:
    """What `beside` says of one run, accuracies in [0, 1]."""
    said: dict[str, Any] = {}
    for attack in ATTACKS:
        if found := lookup(*(run[key] for key in KEYS), attack):
            ours = run[f"test/{attack}"]
            values = (
                found.low,
                found.high,
                round(found.difference(ours), 6),
                found.teachers,
                "; ".join(found.sources),
            )
            names = ("low", "high", "difference", "teachers", "sources")
            said |= {
                f"published/{attack}_{name}": value
                for name, value in zip(names, values, strict=True)
            }
    return said


def same_task(runs: pd.DataFrame) -> pd.Series[bool]:
    """Whether a run had the method as published, all training and test images and the papers' budget; unrecorded: no."""
    import pandas as pd

    names = ["param/eps", "param/limit_train", "test/n", "test/aa_n"]
    facts = runs.reindex(columns=names).apply(pd.to_numeric, errors="coerce").astype(float)
    whole = (
        facts["test/aa_n"].fillna(facts["test/n"]).eq(TEST_IMAGES)
        & facts["param/limit_train"].isna()
    )
    return (
        runs["variant"].isin(["", "official"]) & whole & facts["param/eps"].sub(EPS).abs().lt(1e-6)
    )


@cache
def _cells() -> dict[Any, pd.DataFrame]:
    return dict(iter(_numbers().groupby(["dataset", "student", "method", "attack"])))


@cache
def _numbers() -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(Path(__file__).with_suffix(".csv"), keep_default_na=False)


def _words(name: str) -> str:
    """A network's name in its words and numbers alone: "LTD WRN-34-10" and "wrn34_10-ltd" are the same."""
    return " ".join(sorted(re.findall(r"[a-z]+|\d+", name.lower())))
