"""Where each row of a table stands: its rank, its interval, how far it is behind, or why that cannot be said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from leaderboards.read import verdicts
from leaderboards.stats import rank
from leaderboards.tables import settings
from leaderboards.tables.rows import Row, Run, Standing

if TYPE_CHECKING:
    import pandas as pd

RANKED = (
    " Rank is one more than the number of rows that are significantly better (paired bootstrap over the same images, and "
    "over seeds; 95 % for all pairs of the table together): rows that share a rank are not separated, others need not be."
)
ONE_SEED = " No row has several seeds: networks are compared, not methods."
SOME_ONE_SEED = " A row of one seed is compared with the average spread of the others."
BRACKETS = " In brackets is the row's own 95 % interval over images{}."


def place(rows: Sequence[Sequence[Run]], metric: str, compete: bool) -> list[Standing]:
    """The standing of rows, each given by its runs; those that `compete` must have been judged on the same images."""
    flags = [_flags(runs, metric) for runs in rows]
    known = {index: found for index, found in enumerate(flags) if not isinstance(found, str)}
    standings = [
        Standing(why=found) if isinstance(found, str) else _alone(found) for found in flags
    ]
    if not compete:
        return standings
    for index in [index for index in known if settings.threat(rows[index][0])]:
        standings[index] = replace(
            standings[index], why=f"attacked with {settings.threat(rows[index][0])}"
        )
        del known[index]
    usual = Counter(found.shape[1] for found in known.values()).most_common(1)
    same = [index for index, found in known.items() if found.shape[1] == usual[0][0]]
    for index in known.keys() - set(same):
        why = f"judged on {known[index].shape[1]:,} images, most rows on {usual[0][0]:,}"
        standings[index] = replace(standings[index], why=why)
    if not same:
        return standings
    task = rank.Task.of([known[index] for index in same])
    first = int(task.means.argmax())
    for place, (index, number) in enumerate(zip(same, rank.ranks(task.better()), strict=True)):
        standings[index] = replace(
            standings[index], rank=number, behind=task.difference(first, place)
        )
    return standings


def _alone(flags: rank.Flags) -> Standing:
    return Standing(interval=rank.interval(flags), images=flags.mean(axis=0))


def _flags(runs: Sequence[Run], metric: str) -> rank.Flags | str:
    """The verdicts of a row, or why there are none."""
    try:
        return verdicts.read(runs, metric)
    except verdicts.VerdictError as error:
        return str(error)


def caption(runs: pd.DataFrame, rows: Iterable[Row], compete: bool) -> str:
    """How many images `runs` were judged on, and what ranks and brackets mean for `rows`, where there are any."""
    shown = [row for row in rows if row.standing.interval]
    images = _span(runs, "test/n")
    scored = _span(runs, "test/aa_n") or images
    said = (
        f"{_words(images)} test images" if images else "The number of test images was not recorded"
    )
    said += f", AutoAttack on {_words(scored)} of them." if scored and scored != images else "."
    if not shown:
        return said
    single = sum(row.seeds == 1 for row in shown)
    alone = ONE_SEED if single == len(shown) else SOME_ONE_SEED if single else ""
    over = (
        ""
        if single == len(shown)
        else ", and over seeds where there are several"
        if single
        else " and seeds"
    )
    return said + (RANKED + alone) * (compete and len(shown) > 1) + BRACKETS.format(over)


def beside(frame: pd.DataFrame, rows: Iterable[Row]) -> pd.DataFrame:
    """A frame of runs behind columns "row/..." that say where the row of each run stands; empty for runs of no row."""
    import pandas as pd

    found: dict[str, dict[str, object]] = {}
    for row in rows:
        found |= dict.fromkeys(row.run_ids, _columns(row))
    columns = list(_columns(None))
    told = pd.DataFrame(
        [found.get(run, {}) for run in frame["run_id"]], index=frame.index, columns=columns
    )
    told["row/rank"] = told["row/rank"].astype("Int64")
    return pd.concat([told, frame], axis="columns")


def _columns(row: Row | None) -> dict[str, object]:
    standing = row.standing if row else Standing()
    low, high = standing.interval or (None, None)
    gap, least, most = standing.behind or (None, None, None)
    return {
        "row/rank": standing.rank,
        "row/aa_low": low,
        "row/aa_high": high,
        "row/behind_first": gap,
        "row/behind_first_low": least,
        "row/behind_first_high": most,
        "row/marks": "; ".join(row.marks) if row else "",
    }


def _span(runs: pd.DataFrame, metric: str) -> tuple[int, int] | None:
    values = runs[metric].dropna() if metric in runs else ()
    return (int(min(values)), int(max(values))) if len(values) else None


def _words(span: tuple[int, int]) -> str:
    low, high = (f"{count:,}" for count in span)
    return low if low == high else f"{low} to {high}"
