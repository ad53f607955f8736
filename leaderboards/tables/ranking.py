"""The ranking of each row of a table: ranks, interval, gap to the first, or why it has no rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from leaderboards.schema.metrics import NUM_ATTACKED, NUM_IMAGES, accuracy_name
from leaderboards.schema.packing import Verdicts
from leaderboards.stats.ranks import PairedRows, accuracy_interval, rank_ranges, split_tiers
from leaderboards.tables.protocol_changes import find_threat_change
from leaderboards.tables.rows import Comparison, Ranking, Row, SeedColumns

RANKED = (
    " A rank is a range where rows cannot be told apart: 2 to 5 of 8 rows says that 1 row is"
    " significantly better and 3 are significantly worse (paired bootstrap over the same images,"
    " and over seeds; 95 % for all pairs of the table together)."
)
DETECTABLE = (
    " Two rows that truly differ by {:.1f} points are told apart in about four of five cases."
)
TIERS = " Every ranked row below a tier is significantly worse than the first row of the tier."
ONE_SEED = " No row has several seeds: networks are compared, not methods."
SOME_ONE_SEED = " A row of one seed is compared with the average spread of the others."
BRACKETS = " In brackets is the row's own 95 % interval over images{}."
GAP_COLUMNS = ("row/behind_first", "row/behind_first_low", "row/behind_first_high")
RANK_COLUMNS = ("row/rank_first", "row/rank_last", "row/tier")
RANKING_COLUMNS = (*RANK_COLUMNS, "row/aa_low", "row/aa_high", *GAP_COLUMNS, "row/marks")


def rank_rows(
    rows: Sequence[SeedColumns], compete: bool
) -> tuple[list[Ranking], Comparison | None]:
    """Rank rows; with `compete` against each other, on the same images under the same attack.

    Args:
        rows: by accuracy, best first.
    Returns: the ranking of each row; the comparison of those with ranks, if there are any.
    """
    rankings = [Ranking()] * len(rows)
    verdicts: dict[int, Verdicts] = {}
    for index, seeds in enumerate(rows):
        judged = [record for record in seeds["record"] if record.verdicts]
        if not judged:
            continue
        if len({record.verdicts.images for record in judged}) > 1:
            reason = "its seeds were judged on different numbers of images" if compete else ""
            rankings[index] = Ranking(unranked_reason=reason)
            continue
        survived = np.stack([record.survived for record in judged])
        interval, threat = accuracy_interval(survived), find_threat_change(seeds["changed"][0])
        rankings[index] = Ranking(interval=interval, image_accuracy=survived.mean(axis=0))
        if compete and threat:
            rankings[index] = replace(rankings[index], unranked_reason=f"attacked with {threat}")
        else:
            verdicts[index] = survived
    return rankings, _compare_rows(rankings, verdicts) if compete and verdicts else None


def _compare_rows(rankings: list[Ranking], verdicts: dict[int, Verdicts]) -> Comparison:
    """Set ranks, tiers and gaps of the rows that were judged on as many images as most."""
    counts = Counter(survived.shape[1] for survived in verdicts.values())
    usual = counts.most_common(1)[0][0]
    comparable = {}
    for index, survived in verdicts.items():
        images = survived.shape[1]
        if images == usual:
            comparable[index] = survived
        else:
            reason = f"judged on {images:,} images, most rows on {usual:,}"
            rankings[index] = replace(rankings[index], unranked_reason=reason)
    paired = PairedRows.from_verdicts(list(comparable.values()))
    better = paired.better()
    places = zip(comparable, rank_ranges(better), split_tiers(better), strict=True)
    for position, (index, ranks, tier) in enumerate(places):
        gap = paired.difference(0, position)
        rankings[index] = replace(rankings[index], ranks=ranks, tier=tier, gap_to_first=gap)
    return Comparison(paired.win_probabilities(), paired.detectable_difference())


def describe_evidence(
    runs: pd.DataFrame, rows: Sequence[Row], comparison: Comparison | None
) -> str:
    """Return how many images `runs` were judged on, and which differences that can tell."""
    images = _range_text(runs, NUM_IMAGES)
    attacked = _range_text(runs, NUM_ATTACKED) or images
    text = f"{images} test images" if images else "The number of test images was not recorded"
    if attacked != images:
        text += f", AutoAttack on {attacked} of them"
    last = _range_text(runs, accuracy_name("aa_n", "last"))
    if last not in ("", attacked):
        text += f", the last checkpoint's AutoAttack on {last}"
    text += "."
    seeds = ranked_seeds(rows)
    if not comparison or len(seeds) < 2:
        return text
    if max(seeds) == 1:
        text += ONE_SEED
    elif 1 in seeds:
        text += SOME_ONE_SEED
    if math.isfinite(comparison.detectable):
        text += DETECTABLE.format(100 * comparison.detectable)
    return text


def explain_ranking(rows: Sequence[Row], compete: bool) -> str:
    """Return what ranks and brackets of `rows` mean; "" without any."""
    seeds, text = ranked_seeds(rows), ""
    if not seeds:
        return text
    if compete and len(seeds) > 1:
        text += RANKED
        if any((row.ranking.tier or 0) > 1 for row in rows):
            text += TIERS
    over = "" if max(seeds) == 1 else " and seeds"
    if 1 in seeds and over:
        over = ", and over seeds where there are several"
    return text + BRACKETS.format(over)


def ranked_seeds(rows: Sequence[Row]) -> list[int]:
    """Return the number of seeds of each row that was judged image by image."""
    return [row.seeds for row in rows if row.ranking.interval]


def add_ranking_columns(runs: pd.DataFrame, rows: Iterable[Row]) -> pd.DataFrame:
    """Put columns "row/..." before those of `runs`: the ranking of a run's row, or empty."""
    values_by_run: dict[str, tuple[object, ...]] = {}
    for row in rows:
        interval = row.ranking.interval or (None, None)
        gap = row.ranking.gap_to_first or (None, None, None)
        ranks = *(row.ranking.ranks or (None, None)), row.ranking.tier
        values = (*ranks, *interval, *gap, "; ".join(row.marks))
        values_by_run |= dict.fromkeys(row.run_ids, values)
    unranked = (None,) * len(RANKING_COLUMNS)
    content = [values_by_run.get(run_id, unranked) for run_id in runs["run_id"]]
    columns = pd.DataFrame(content, index=runs.index, columns=list(RANKING_COLUMNS))
    columns = columns.astype(dict.fromkeys(RANK_COLUMNS, "Int64"))
    return pd.concat([columns, runs], axis="columns")


def _range_text(runs: pd.DataFrame, metric: str) -> str:
    """Return "1,000" or "500 to 1,000"; "" where nothing was recorded."""
    if metric not in runs or runs[metric].isna().all():
        return ""
    low, high = f"{int(runs[metric].min()):,}", f"{int(runs[metric].max()):,}"
    return low if low == high else f"{low} to {high}"
