"""What a run did otherwise than the runs around it, so that it is a row of its own and never one of their seeds."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

OWN = ("param/hyper.", "param/tuned")  # params that a method and its variant settle
PROTOCOL = (
    "training.",
    "eps",
    "inner_",
    "limit_",
    "attacks",
    "precision",
)  # params that make another experiment
COUNTED = {
    "test/n": "images",
    "test/aa_n": "images of AutoAttack",
}  # with equal parameters equal, in a sound record


def changed(runs: pd.DataFrame, stated: Mapping[str, str]) -> list[str]:
    """What each run did under another protocol: such runs are another row, never another seed of the same.

    The protocol is what is `stated`, by parameter, and beyond that what most runs did. What a run's variant stands for, as
    "official" and "tuned" do, is not said again, and a parameter that was never recorded is not a change.
    """
    said: dict[Any, list[str]] = {index: [] for index in runs.index}
    excused = {
        index: {f"param/training.{name}" for name in names.split(",")}
        for index, names in runs["sets"].items()
    }
    there = {f"param/{name}": value for name, value in stated.items() if f"param/{name}" in runs}
    protocol = _usual(runs, PROTOCOL) | there
    for _, part in runs.groupby("teacher"):
        for name, usual in (protocol | _usual(part, ("teachers.",))).items():
            own = part[name]
            for index, value in own[own.notna() & (own != usual)].items() if usual else ():
                if name not in excused[index]:
                    said[index].append(f"{name[6:]}={value}")
    for index, text in _counted(runs):
        if "limit_" not in " ".join(said[index]):
            said[index].append(text)
    for index, name, value in _unusual(runs):
        said[index].append(f"{name[6:]}={value}")
    return [", ".join(changes) for changes in said.values()]


def threat(run: Mapping[str, Any]) -> str:
    """What makes a run's attacks, as `changed` has it, others than those of the rows around it; "" if nothing does."""
    return next((part for part in run["changed"].split(", ") if part.startswith("eps=")), "")


def _counted(runs: pd.DataFrame) -> Iterator[tuple[Any, str]]:
    """(index, what it says) of runs that were judged on another number of images than most on the same data."""
    for name in (name for name in COUNTED if name in runs):
        for _, values in runs[name].dropna().groupby(runs["dataset"]):
            usual = Counter(values.tolist()).most_common(1)[0][0]
            yield from (
                (index, f"{COUNTED[name]}={value:g}")
                for index, value in values[values != usual].items()
            )


def _usual(runs: pd.DataFrame, keys: tuple[str, ...]) -> dict[str, str]:
    """The most common value of each recorded parameter whose name starts with one of `keys`.

    Runs whose variant sets some of them, as tuned ones do, count only where there are no others.
    """
    names = [
        name for name in runs.columns if name.startswith(tuple(f"param/{key}" for key in keys))
    ]
    plain = runs[runs["sets"] == ""] if (runs["sets"] == "").any() else runs
    return {name: Counter(plain[name].fillna("").tolist()).most_common(1)[0][0] for name in names}


def _unusual(runs: pd.DataFrame) -> Iterator[tuple[Any, str, str]]:
    """(index, parameter, value) where runs of one method and variant, which says what differs, differ all the same."""
    same = list(zip(runs["method"], runs["variant"], strict=True))
    for name in (name for name in runs.columns if name.startswith(OWN)):
        counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        values = runs[name].fillna("").tolist()
        for key, value in zip(same, values, strict=True):
            counts[key].update([value] if value else [])
        for index, key, value in zip(runs.index, same, values, strict=True):
            if value and len(counts[key]) > 1 and value != counts[key].most_common(1)[0][0]:
                yield index, name, value
