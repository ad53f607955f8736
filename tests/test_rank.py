"""Intervals, paired differences, ranks, tiers: exact on small cases, covering in simulation."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sites
from record_store import Records
from scipy.stats import norm
from sites import Reader, render_markdown
from test_leaderboards import scores

from leaderboards.read.records import collect
from leaderboards.render import latex
from leaderboards.render.figures import rank_diagram, task_views
from leaderboards.render.figures.task_views import win_matrix
from leaderboards.render.numbers import format_ranks
from leaderboards.render.site.site_map import Site
from leaderboards.schema.fields import NO_BF16
from leaderboards.schema.metrics import RANK_METRIC
from leaderboards.schema.packing import Verdicts
from leaderboards.stats import mean_positions, ranks
from leaderboards.stats.ranks import PairedRows
from leaderboards.tables.across_tasks import robustness_kept
from leaderboards.tables.ranking import add_ranking_columns
from leaderboards.tables.rows import Row, TaskTable
from leaderboards.tables.suite_tables import build_sections

SEEDS = [(1,), (2,), (3,)]


def simulate(
    rng: np.random.Generator,
    rows: int,
    seeds: tuple[int, ...],
    accuracy: float,
    luck: float,
    n: int = 300,
    first: float | None = None,
) -> list[Verdicts]:
    """Rows of the same accuracy, or of another for the first.

    Images differ in difficulty, mostly alike, and seeds in luck.
    """
    hard = rng.normal(size=n)
    simulated = []
    for row in range(rows):
        wanted = accuracy if first is None or row else first
        middle = norm.ppf(wanted) * math.sqrt(1 + 4 + luck**2)
        difficulty = 2 * (math.sqrt(0.8) * hard + math.sqrt(0.2) * rng.normal(size=n))
        count = seeds[row % len(seeds)]
        seed_luck = luck * rng.normal(size=(count, 1))
        simulated.append(middle + difficulty + seed_luck + rng.normal(size=(count, n)) > 0)
    return simulated


def first_ranks(better: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    return [first for first, _ in ranks.rank_ranges(better)]


def verdicts(*survivors: int, n: int) -> Verdicts:
    """Verdicts with a seed for each number: so many of n images survive, the first ones."""
    return np.arange(n) < np.array(survivors)[:, None]


@pytest.mark.parametrize("seeds", [*SEEDS, (5,)])
@pytest.mark.parametrize("accuracy", [0.2, 0.8])
def test_interval_covers_the_truth(seeds: tuple[int, ...], accuracy: float) -> None:
    rng = np.random.default_rng(0)
    for luck in (0.0, 0.1, 0.3) if seeds[0] > 1 else (0.0,):
        intervals = [
            ranks.accuracy_interval(simulate(rng, 1, seeds, accuracy, luck)[0]) for _ in range(2000)
        ]
        assert 0.93 <= np.mean([low <= accuracy <= high for low, high in intervals]) <= 0.98


@pytest.mark.parametrize("seeds", [*SEEDS, (1, 3)])
def test_difference_covers_the_truth(seeds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    tasks = [
        PairedRows.from_verdicts(simulate(rng, 4, seeds, 0.6, 0.1 * (seeds != (1,))))
        for _ in range(400)
    ]
    differences = [task.difference(0, 1) for task in tasks]
    assert 0.93 <= np.mean([low <= 0 <= high for _, low, high in differences]) <= 0.985


@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.parametrize("seeds", [*SEEDS, (1, 3)])
def test_differences_to_a_control_cover_the_truth_together(
    seeds: tuple[int, ...], rows: int
) -> None:
    """All of a task's intervals at once, of methods that are equal."""
    rng = np.random.default_rng(8)
    luck = 0.1 * (seeds != (1,))
    tasks = [ranks.difference_intervals(simulate(rng, rows, seeds, 0.7, luck)) for _ in range(300)]
    covered = [all(low <= 0 <= high for _, low, high in task) for task in tasks]
    assert 0.92 <= np.mean(covered) <= 0.995


def test_what_a_seed_does_to_all_rows_does_not_widen_their_differences() -> None:
    """Seeds are blocks where each row has one network of each."""
    rng = np.random.default_rng(9)
    rows = [rng.random((3, 300)) < 0.8 for _ in range(5)]
    plain = ranks.difference_intervals(rows)
    for row in rows:
        row[1] &= np.arange(300) >= 90
    shifted = ranks.difference_intervals(rows)
    half = [np.mean([high - low for _, low, high in task]) / 2 for task in (plain, shifted)]
    assert half[1] < 1.1 * half[0]
    # Another order of the seeds pairs networks that share nothing.
    mixed = [np.roll(row, index, axis=0) for index, row in enumerate(rows)]
    assert np.mean([high - low for _, low, high in ranks.difference_intervals(mixed)]) > 4 * half[0]


def test_a_difference_to_a_control_by_hand() -> None:
    control, row = verdicts(50, n=100), verdicts(62, n=100)
    half = 1.96 * math.sqrt(0.12 * 0.88 / 99)
    expected = (0.12, 0.12 - half, 0.12 + half)
    assert ranks.difference_intervals([control, row])[0] == pytest.approx(expected, abs=0.005)


def test_a_real_difference_to_a_control_is_decided() -> None:
    rng = np.random.default_rng(10)
    rows = [*simulate(rng, 3, (3,), 0.8, 0.02), *simulate(rng, 1, (3,), 0.5, 0.02)]
    *same, other = ranks.difference_intervals(rows)
    assert all(low < 0 < high for _, low, high in same)
    assert other[2] < 0


def test_equal_verdicts_do_not_make_a_certain_difference() -> None:
    row = verdicts(40, n=100)
    gap, low, high = ranks.difference_intervals([row, row.copy(), verdicts(60, n=100)])[0]
    assert gap == 0
    assert 0.01 < high == -low < 0.03


def test_more_rows_have_wider_differences_to_the_control() -> None:
    rng = np.random.default_rng(11)
    rows = simulate(rng, 12, (1,), 0.7, 0.0)
    few, many = ranks.difference_intervals(rows[:2]), ranks.difference_intervals(rows)
    assert many[0][2] - many[0][1] > 1.2 * (few[0][2] - few[0][1])


@pytest.mark.parametrize("rows", [2, 3, 8])
@pytest.mark.parametrize("seeds", [*SEEDS, (1, 3)])
def test_equal_methods_share_a_rank(seeds: tuple[int, ...], rows: int) -> None:
    rng = np.random.default_rng(2)
    tasks = (simulate(rng, rows, seeds, 0.7, 0.1 * (seeds != (1,))) for _ in range(2400 // rows))
    shared = [not PairedRows.from_verdicts(rows_of_task).better().any() for rows_of_task in tasks]
    # Eight rows need no margin: 2,500 tasks of rows (1,) gave 0.951.
    margin = 2 * math.sqrt(0.05 * 0.95 / len(shared)) * (rows < 8)
    assert np.mean(shared) >= 0.95 - margin


def test_a_real_difference_is_significant() -> None:
    rng = np.random.default_rng(3)
    rows = [
        *simulate(rng, 3, (3,), 0.8, 0.02),
        *simulate(rng, 2, (3,), 0.5, 0.02),
        *simulate(rng, 1, (3,), 0.1, 0.02),
    ]
    assert first_ranks(PairedRows.from_verdicts(rows).better()) == [1, 1, 1, 4, 4, 6]


@pytest.mark.parametrize(("seeds", "rows"), [((1,), 20), ((3,), 4), ((3,), 20)])
def test_the_detectable_difference_is_found_in_four_of_five_cases(
    seeds: tuple[int, ...], rows: int
) -> None:
    """Where a row of the highest accuracy is compared with all others."""
    rng = np.random.default_rng(rows)
    # With one seed networks are compared, and their luck is part of what they are.
    luck = 0.0 if seeds == (1,) else 0.05
    equal = [simulate(rng, rows, seeds, 0.3, luck, n=1000) for _ in range(20)]
    step = np.mean([PairedRows.from_verdicts(task).detectable_difference() for task in equal])
    unequal = [simulate(rng, rows, seeds, 0.3, luck, n=1000, first=0.3 + step) for _ in range(100)]
    shares = [PairedRows.from_verdicts(task).better()[0, 1:].mean() for task in unequal]
    assert 0.65 <= np.mean(shares) <= 0.9
    assert math.isnan(PairedRows.from_verdicts(equal[0][:1]).detectable_difference())


def test_rows_are_compared_image_by_image() -> None:
    """Twelve images of a hundred that only one row survives are significant only if paired."""
    rows = [verdicts(62, n=100), verdicts(50, n=100)]
    assert first_ranks(PairedRows.from_verdicts(rows).better()) == [1, 2]
    shuffled = [rows[0], np.roll(rows[1], 50, axis=1)]
    assert first_ranks(PairedRows.from_verdicts(shuffled).better()) == [1, 1]


def test_single_pair_by_hand() -> None:
    task = PairedRows.from_verdicts([verdicts(62, n=100), verdicts(50, n=100)])
    gap, low, high = task.difference(0, 1)
    half = 1.96 * math.sqrt(0.12 * 0.88 / 99)
    assert (gap, low, high) == pytest.approx((0.12, 0.12 - half, 0.12 + half), abs=0.005)
    assert task.difference(1, 0)[0] == pytest.approx(-gap)
    assert task.difference(0, 0) == (0, 0, 0)


def test_interval_by_hand() -> None:
    assert ranks.accuracy_interval(verdicts(0, n=100)) == pytest.approx(
        (0, 0.037), abs=5e-4
    )  # Wilson's
    assert ranks.accuracy_interval(verdicts(100, n=100)) == pytest.approx((0.963, 1), abs=5e-4)
    assert ranks.accuracy_interval(verdicts(50, n=100)) == pytest.approx((0.404, 0.596), abs=1e-3)
    assert ranks.accuracy_interval(verdicts(50, 50, n=100)) == pytest.approx(
        (0.404, 0.596), abs=1e-3
    )  # the same network twice
    low, high = ranks.accuracy_interval(verdicts(4000, 6000, n=10_000))
    assert low == 0  # Student's for two seeds: 0.5 - 12.7 * 0.1
    assert high == 1


def test_seed_variance_leaves_out_the_noise_of_images() -> None:
    assert math.isnan(ranks.seed_variance(verdicts(5, n=10)))
    assert ranks.seed_variance(verdicts(5, 5, n=10)) == 0
    rng = np.random.default_rng(4)
    luck = [ranks.seed_variance(simulate(rng, 1, (3,), 0.5, 0.2)[0]) for _ in range(500)]
    assert np.mean(luck) == pytest.approx((0.2 * norm.pdf(0) / math.sqrt(5)) ** 2, rel=0.2)
    assert np.mean(
        [ranks.seed_variance(rng.random((3, 200)) < 0.5) for _ in range(500)]
    ) == pytest.approx(0, abs=1e-4)


def test_a_row_of_one_seed_takes_the_average_spread() -> None:
    several = verdicts(30, 60, 90, n=100)
    paired = PairedRows.from_verdicts([several, verdicts(60, n=100)])
    assert paired.seeds[1] == pytest.approx(0.3**2)
    assert 0.08 < 3 * paired.seeds[0] < 0.09  # less what images explain
    assert (PairedRows.from_verdicts([verdicts(60, n=100), verdicts(30, n=100)]).seeds == 0).all()


def test_identical_rows_share_a_rank() -> None:
    row = verdicts(40, 42, n=100)
    assert first_ranks(PairedRows.from_verdicts([row, row.copy(), row.copy()]).better()) == [
        1,
        1,
        1,
    ]
    assert first_ranks(
        PairedRows.from_verdicts([verdicts(0, n=100), verdicts(0, n=100)]).better()
    ) == [1, 1]
    assert first_ranks(PairedRows.from_verdicts([row]).better()) == [1]
    assert first_ranks(PairedRows.from_verdicts([verdicts(1, n=1)]).better()) == [1]


def better_matrix(rows: int, *pairs: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return (rows, rows): a is better than b for each pair (a, b), which count from 1."""
    better = np.zeros((rows, rows), dtype=bool)
    for a, b in pairs:
        better[a - 1, b - 1] = True
    return better


@pytest.mark.parametrize(
    ("pairs", "ranges", "tiers"),
    [
        ((), [(1, 4), (1, 4), (1, 4), (1, 4)], [1, 1, 1, 1]),
        # Row 3 is worse than row 1, row 4 is not: no line between them and the first two.
        (((1, 3),), [(1, 3), (1, 4), (2, 4), (1, 4)], [1, 1, 1, 1]),
        (((1, 3), (1, 4)), [(1, 2), (1, 4), (2, 4), (2, 4)], [1, 1, 2, 2]),
        # Row 4 is worse than row 2 and not than row 3, with which the tier begins.
        (
            ((1, 2), (1, 3), (1, 4), (2, 4)),
            [(1, 1), (2, 3), (2, 4), (3, 4)],
            [1, 2, 2, 3],
        ),
        (
            ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)),
            [(1, 1), (2, 2), (3, 3), (4, 4)],
            [1, 2, 3, 4],
        ),
    ],
)
def test_ranges_and_tiers_of_a_known_order(
    pairs: tuple[tuple[int, int], ...], ranges: list[tuple[int, int]], tiers: list[int]
) -> None:
    better = better_matrix(4, *pairs)
    assert ranks.rank_ranges(better) == ranges
    assert ranks.split_tiers(better) == tiers


def test_format_ranks() -> None:
    assert [*map(format_ranks, (None, (1, 1), (1, 16)))] == ["-", "1", "1 to 16"]


def test_win_probabilities_by_counting() -> None:
    """Of rows of one seed a draw moves the mean by its images alone, and ties are common."""
    rows = [verdicts(6, n=10), ~verdicts(6, n=10), verdicts(6, n=10), verdicts(5, n=10)]
    paired = PairedRows.from_verdicts(rows)
    rng, draws = np.random.default_rng(0), ranks.MAX_DRAWS
    wins = np.zeros((4, 4))
    for _ in range(draws):
        drawn = rng.integers(10, size=10)
        survivors = [int(row[0, drawn].sum()) for row in rows]
        for a, b in product(range(4), repeat=2):
            wins[a, b] += (survivors[a] > survivors[b]) + (survivors[a] == survivors[b]) / 2
    probabilities = paired.win_probabilities()
    np.testing.assert_allclose(probabilities, wins / draws, atol=1e-12)
    assert (np.diag(probabilities) == 0.5).all()
    assert probabilities[0, 2] == 0.5
    assert 0.5 < probabilities[0, 3] < 1


def test_win_probabilities_know_of_seeds() -> None:
    """Two seeds that differ much leave open what one seed on as many images decides."""
    several = PairedRows.from_verdicts([verdicts(95, 65, n=100), verdicts(55, 75, n=100)])
    single = PairedRows.from_verdicts([verdicts(80, n=100), verdicts(65, n=100)])
    assert 0.6 < several.win_probabilities()[0, 1] < 0.9
    assert single.win_probabilities()[0, 1] == 1
    np.testing.assert_allclose(several.win_probabilities().sum(), 2)


def mixed_rows(seed: int) -> list[Verdicts]:
    rng = np.random.default_rng(seed)
    return [simulate(rng, 1, (1 + row % 3,), 0.3 + 0.04 * row, 0.1)[0] for row in range(10)]


@pytest.mark.parametrize("seed", range(5))
def test_better_is_an_order(seed: int) -> None:
    better = PairedRows.from_verdicts(mixed_rows(seed)).better()
    assert not (better & better.T).any()
    assert not ((better.astype(int) @ better.astype(int) > 0) & ~better).any()  # transitive
    shared = np.array(first_ranks(better))
    assert not (better & (shared[:, None] >= shared)).any()
    assert better.any()


@pytest.mark.parametrize("seed", range(3))
def test_order_does_not_matter(seed: int) -> None:
    rows = mixed_rows(seed)
    order = np.random.default_rng(seed).permutation(len(rows))
    straight, permuted = (
        PairedRows.from_verdicts(rows),
        PairedRows.from_verdicts([rows[row] for row in order]),
    )
    assert (straight.better()[np.ix_(order, order)] == permuted.better()).all()
    assert permuted.difference(0, 1) == pytest.approx(straight.difference(*order[:2]), abs=1e-6)


def test_many_rows_stay_cheap() -> None:
    rng = np.random.default_rng(6)
    task = PairedRows.from_verdicts([rng.random((1, 50)) < 0.5 for _ in range(500)])
    assert task.shifts.shape == (500, ranks.MIN_DRAWS)
    assert not task.better().any()


# Verdicts of records.


@pytest.fixture
def tracked(tmp_path: Path) -> Records:
    return Records(tmp_path / "records")


def record_run(tracked: Records, method: str, aa: float, n: int = 200, **content: Any) -> None:
    """Record a run with verdicts on n images, and test/n of them, which `metrics` change."""
    survived = np.arange(n) < round(aa * n)
    metrics = scores(0.9, aa, 60) | {"test/n": n, "test/aa_n": None} | content.pop("metrics", {})
    accuracy = float(survived.mean())
    tracked.run(method, accuracy, survived=survived, metrics=metrics, **content)


def first_rank(row: Row) -> int | None:
    return row.ranking.ranks[0] if row.ranking.ranks else None


def task_tables(tracked: Records) -> list[TaskTable]:
    return list(build_sections(collect(tracked.folder))[0].tables)


def ranks_of(table: TaskTable) -> list[tuple[str, int | None, str]]:
    return [(row.method, first_rank(row), row.ranking.unranked_reason) for row in table.ranked]


def test_ranks_of_a_store(tracked: Records) -> None:
    for method, aa in {"gacd": 0.8, "rslad": 0.79, "kd": 0.1}.items():
        record_run(tracked, method, aa)
    (table,) = task_tables(tracked)
    assert ranks_of(table) == [("gacd", 1, ""), ("rslad", 1, ""), ("kd", 3, "")]
    assert [row.ranking.ranks for row in table.ranked] == [(1, 2), (1, 2), (3, 3)]
    assert [row.ranking.tier for row in table.ranked] == [1, 1, 2]
    assert "networks are compared" in table.caption
    assert "below a tier" in table.caption
    matrix = win_matrix(table)
    assert matrix
    assert matrix[0] == ["gacd", "rslad", "kd"]
    assert matrix[1][0, 1] > 0.9
    assert matrix[1][0, 2] == matrix[1][1, 2] == 1
    gap = table.ranked[2].ranking.gap_to_first
    assert gap
    assert gap[0] == pytest.approx(0.7)


def test_rows_on_other_images_are_not_compared(tracked: Records) -> None:
    record_run(tracked, "gacd", 0.8)
    record_run(tracked, "rslad", 0.8)
    record_run(tracked, "ard", 0.7, n=10)
    record_run(tracked, "kd", 0.1)
    record_run(tracked, "kd", 0.1, n=100, seed=1, metrics={"test/n": 200})
    record_run(tracked, "rslad", 1.0, n=8, seed=1)
    (table,) = task_tables(tracked)
    rankings = {row.label: (first_rank(row), row.ranking.unranked_reason) for row in table.ranked}
    assert rankings["ard (images=10)"] == (None, "judged on 10 images, most rows on 200")
    assert rankings["kd"] == (None, "its seeds were judged on different numbers of images")
    assert rankings["rslad (images=8)"] == (None, "judged on 8 images, most rows on 200")
    assert rankings["gacd"] == rankings["rslad"] == (1, "")


def test_a_row_without_a_rank_is_best_at_nothing(tracked: Records) -> None:
    """One was judged on eight images only, one was attacked with a smaller eps."""
    for student in ("net0", "net1"):
        for method, aa in {"gacd": 0.8, "rslad": 0.7, "kd": 0.1}.items():
            record_run(tracked, method, aa, student=student)
        record_run(tracked, "ard", 1.0, n=8, student=student)
        record_run(tracked, "iad", 0.95, student=student, params={"eps": 0.01})
    runs = collect(tracked.folder)
    (section,) = build_sections(runs)
    runs_by_id = Site(runs, [section]).runs
    for table in section.tables:
        assert [row.method for row in table.ranked] == ["gacd", "rslad", "kd", "ard", "iad"]
        assert [row.method for row in table.contenders] == ["gacd", "rslad", "kd"]
        assert table.ranked[-1].ranking.unranked_reason == "attacked with eps=0.01"
        assert {table.best(column) for column in table.columns if column.metric == RANK_METRIC} == {
            0.8
        }
        drawn = [
            series for view in task_views.task_views(table, runs_by_id) for series in view.series
        ]
        assert all(len(series.y) <= 3 for series in drawn)
    assert section.across_tasks
    assert [entry.label for entry in section.across_tasks.rows] == ["gacd", "rslad", "kd"]
    for task in Site(runs, [section]).tasks:
        assert task.best
        assert (task.best.method, task.best.score) == ("gacd", 0.8)


def test_norms_are_kept_apart(tracked: Records) -> None:
    """A suite in L2 says so in its titles; in one of l-inf a row in L2 has no rank."""
    in_l2 = {"norm": "L2", "eps": 0.5}
    for method in ("gacd", "rslad"):
        record_run(tracked, method, 0.8)
        record_run(tracked, method, 0.7, experiment="l2-0123abcd@1", params=in_l2)
    record_run(tracked, "trades", 0.9, experiment="l2-0123abcd@1", params=in_l2, role="teacher")
    record_run(tracked, "ard", 0.9, params=in_l2)
    runs = collect(tracked.folder)
    linf, l2 = build_sections(runs, {"digits@1": {"norm": "Linf", "eps": "0.15"}})
    assert [table.title for table in linf.all_tables] == ["digits, resnet8-w4"]
    assert [table.title for table in l2.all_tables] == [
        "digits, resnet8-w4, L2, eps 0.5",
        "Teachers, L2, eps 0.5",
    ]
    assert [row.label for row in l2.tables[0].contenders] == ["gacd", "rslad"]
    last = linf.tables[0].ranked[-1]
    assert last.label == "ard (eps=0.5, norm=L2)"
    assert last.ranking.unranked_reason == "attacked with eps=0.5, norm=L2"
    assert "### digits, resnet8-w4, L2, eps 0.5" in render_markdown(runs)
    assert "l2-0123abcd@1: digits, resnet8-w4, L2, eps 0.5." in latex.render([l2])


def test_compared_rows_are_sorted_by_accuracy_and_the_others_follow(tracked: Records) -> None:
    for method, aa in {"kd": 0.1, "rslad": 0.7, "gacd": 0.8, "absld": 0.7}.items():
        record_run(tracked, method, aa)
    record_run(tracked, "iad", 0.05, n=100)
    (table,) = task_tables(tracked)
    order = ["gacd", "absld", "rslad", "kd", "iad"]
    assert [row.method for row in table.ranked] == order
    assert [row.ranking.tier for row in table.ranked] == [1, 2, 2, 3, None]
    page = sites.task(collect(tracked.folder), "digits@1")
    assert [line[1].split()[0] for line in next(iter(Reader(page).tables.values()))[1:]] == order
    starts = re.findall(r'<tr[^>]* class="tier">.*?</tr>', page, re.DOTALL)
    assert all(name in start for name, start in zip(("absld", "kd"), starts, strict=True))


def test_nothing_leads_at_zero(tracked: Records) -> None:
    for method in ("gacd", "rslad"):
        record_run(tracked, method, 0.0)
    (table,) = task_tables(tracked)
    assert [row.ranking.ranks for row in table.ranked] == [(1, 2), (1, 2)]
    assert table.leaders == []
    assert table.tiers == 1
    runs = collect(tracked.folder)
    assert "**0.0**" not in render_markdown(runs)
    assert "**90.0**" in render_markdown(runs)
    text = latex.render(build_sections(runs))
    assert r"\textbf{0.0}" not in text
    assert r"\underline{0.0}" not in text
    assert "none above 0 %" in sites.render(runs)["index.html"]
    assert "may be first" not in sites.task(runs, "digits@1")


def test_a_stated_protocol_outvotes_the_runs(tracked: Records) -> None:
    record_run(tracked, "gacd", 0.8)
    for seed in range(3):
        record_run(tracked, "rslad", 0.9, seed=seed, params={"eps": 0.01})
    runs = collect(tracked.folder)
    assert build_sections(runs)[0].tables[0].ranked[-1].label == "gacd (eps=0.15)"
    (table,) = build_sections(runs, {"digits@1": {"eps": "0.15", "unheard.of": "1"}})[0].tables
    assert [(row.label, first_rank(row)) for row in table.ranked] == [
        ("gacd", 1),
        ("rslad (eps=0.01)", None),
    ]


def test_csv_has_the_ranking_of_the_row(tracked: Records) -> None:
    record_run(tracked, "gacd", 0.8)
    record_run(tracked, "gacd", 0.81, seed=1, code_dirty="true")
    record_run(tracked, "kd", 0.1)
    record_run(tracked, "trades", 0.9, role="teacher")
    runs = collect(tracked.folder)
    read = add_ranking_columns(runs, build_sections(runs)[0].rows).set_index("run_id", drop=False)
    assert next(iter(read)) == "row/rank_first"
    assert read["row/rank_first"].fillna(0).tolist() == [1, 1, 2, 0]
    assert read["row/rank_last"].fillna(0).tolist() == [1, 1, 2, 0]
    assert read["row/tier"].fillna(0).tolist() == [1, 1, 2, 0]
    assert read["row/marks"].tolist() == ["uncommitted code", "uncommitted code", "", ""]
    assert (read["row/aa_low"] < read["row/aa_high"]).all()
    assert read["row/behind_first"].iloc[2] == pytest.approx(0.705)


# Across tasks.


def record_tasks(tracked: Records, accuracy: dict[str, tuple[float, ...]], **tags: Any) -> None:
    for method, values in accuracy.items():
        for task, value in enumerate(values):
            record_run(tracked, method, value, student=f"net{task}", **tags)


def test_across_tasks(tracked: Records) -> None:
    record_tasks(
        tracked,
        {"gacd": (0.8, 0.7, 0.75), "rslad": (0.7, 0.6, 0.76), "kd": (0.1, 0.2, 0.1)},
        teacher="big-trades",
    )
    record_run(tracked, "ard", 0.5, student="net0", teacher="big-trades")
    record_run(tracked, "trades", 0.9, role="teacher", student="big", teacher="none")
    (section,) = build_sections(collect(tracked.folder))
    across = section.across_tasks
    assert across
    assert [(entry.label, round(entry.mean_position, 3)) for entry in across.rows] == [
        ("gacd", 1.333), ("rslad", 1.667), ("kd", 3.0)
    ]  # fmt: skip
    assert across.rows[0].robustness_kept == pytest.approx(0.75 / 0.9)
    assert across.left_out == 1
    assert across.p == pytest.approx(0.0970, abs=1e-3)
    assert "No two rows can be told apart over 3 tasks." in across.caption
    assert rank_diagram.layout_diagram(across) is None
    assert across.critical_difference == pytest.approx(
        2.343 * math.sqrt(3 * 4 / (6 * 3)), abs=1e-3
    )  # Demšar's table 5
    text = render_markdown(collect(tracked.folder))
    assert "| 1.3 | gacd | big-trades | 83.3 % | 80.0 | 1 | 70.0 | 1 | 75.0 | 1 to 2 |" in text
    assert "Critical-difference" not in sites.render(collect(tracked.folder))["index.html"]


def test_the_diagram_is_there_where_two_rows_can_be_told_apart(tracked: Records) -> None:
    record_tasks(tracked, {"gacd": (0.8, 0.7, 0.75), "rslad": (0.79, 0.69, 0.74), "kd": (0.1,) * 3})
    runs = collect(tracked.folder)
    across = build_sections(runs)[0].across_tasks
    assert across
    assert [entry.ranks for entry in across.rows] == [((1, 2),) * 3, ((1, 2),) * 3, ((3, 3),) * 3]
    assert across.p == pytest.approx(math.exp(-3))
    assert "told apart" not in across.caption
    diagram = rank_diagram.layout_diagram(across)
    assert diagram
    assert "critical difference 1.9" in [label.text for label in diagram.labels]
    assert "critical difference 1.9" in sites.render(runs)["index.html"]
    for untold in (replace(across, p=0.06), replace(across, critical_difference=2.0)):
        assert rank_diagram.layout_diagram(untold) is None
        assert "No two rows can be told apart over 3 tasks." in untold.caption


def test_one_task_is_not_compared_across_tasks(tracked: Records) -> None:
    record_tasks(tracked, {"gacd": (0.8, 0.7), "rslad": (0.7,)})
    assert build_sections(collect(tracked.folder))[0].across_tasks is None


def test_two_rows_have_no_test_and_no_diagram(tracked: Records) -> None:
    record_tasks(tracked, {"gacd": (0.8, 0.7), "rslad": (0.7, 0.6)})
    across = build_sections(collect(tracked.folder))[0].across_tasks
    assert across
    assert math.isnan(across.p)
    assert "told apart" not in across.caption
    assert rank_diagram.layout_diagram(across) is None


def test_friedman_without_differences_is_no_test() -> None:
    assert math.isnan(mean_positions.friedman_p(np.full((3, 2), 0.5)))
    accuracies = np.array([[0.1, 0.2, 0.1], [0.2, 0.3, 0.2], [0.3, 0.4, 0.3]])
    assert mean_positions.friedman_p(accuracies) == pytest.approx(math.exp(-3), abs=1e-6)


@pytest.mark.parametrize(("rows", "q"), [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_nemenyi_by_demsars_table(rows: int, q: float) -> None:
    assert mean_positions.critical_difference(rows, 10) == pytest.approx(
        q * math.sqrt(rows * (rows + 1) / 60), abs=1e-3
    )


def test_bars_of_the_diagram() -> None:
    values = (1.0, 1.5, 2.5, 4.0, 4.2)
    assert mean_positions.inseparable_spans(values, 1.5) == [(1.0, 2.5), (2.5, 4.0), (4.0, 4.2)]
    assert mean_positions.inseparable_spans(values, 0.1) == []
    assert mean_positions.inseparable_spans(values, 9) == [(1.0, 4.2)]


def test_robustness_kept_is_measured_on_the_same_images(tracked: Records) -> None:
    """The teacher survives on 80 of 100 images, the student on the first 120 of 200."""
    record_run(tracked, "gacd", 0.6, teacher="big-trades")
    record_run(tracked, "trades", 0.8, n=100, role="teacher", student="big", teacher="none")
    record_run(
        tracked,
        "trades",
        1.0,
        n=100,
        role="teacher",
        student="big",
        teacher="none",
        params={"eps": 0.01},
    )
    record_run(tracked, "natural", 0.0, n=100, role="teacher", student="big", teacher="none")
    section = build_sections(collect(tracked.folder))[0]
    assert robustness_kept(section.tables[0].ranked[0], section.teachers) == pytest.approx(1 / 0.8)


def teachers_by_role(**sha256: str) -> dict[str, Any]:
    """Return tags of a student whose teachers' sha256 consist of these letters; "?" is unknown."""
    recorded = {role: 64 * letter for role, letter in sha256.items() if letter != "?"}
    methods = {"robust": "trades", "natural": "natural"}
    params = {f"teachers.{role}": f"big-{methods[role]}-0123abcd" for role in sha256}
    return {"teacher_sha256": json.dumps(recorded), "params": params}


def test_a_teacher_trained_twice_is_noted(tracked: Records) -> None:
    """Between methods with one teacher and with two, too; of two that are tied both get a note."""
    record_run(tracked, "gacd", 0.8, **teachers_by_role(robust="a"))
    record_run(tracked, "rslad", 0.7, **teachers_by_role(robust="a"))
    record_run(tracked, "iad2", 0.6, **teachers_by_role(robust="b", natural="n"))
    record_run(tracked, "mtard", 0.4, **teachers_by_role(robust="a", natural="m"))
    record_run(tracked, "kd", 0.3, seed=0, **teachers_by_role(robust="a"))
    record_run(tracked, "kd", 0.2, seed=1, **teachers_by_role(robust="b"))
    record_run(tracked, "ard", 0.5, **teachers_by_role(robust="?"))
    section = build_sections(collect(tracked.folder))[0]
    notes = {
        row.method: [note for note in row.notes if "checkpoint" in note]
        for row in section.tables[0].rows
    }
    robust = "taught by checkpoint bbbbbbbb of big-trades-0123abcd, as 2 of 6 runs here"
    natural = "taught by checkpoint ???????? of big-natural-0123abcd, as 1 of 2 runs here"
    assert notes == {
        "gacd": [], "rslad": [], "ard": [], "kd": [robust],
        "iad2": [robust, natural.replace("?", "n")],
        "mtard": [natural.replace("?", "m")],
    }  # fmt: skip


def test_robustness_kept_needs_the_same_checkpoint(tracked: Records) -> None:
    record_run(tracked, "gacd", 0.8, **teachers_by_role(robust="a"))
    record_run(tracked, "ard", 0.5, **teachers_by_role(robust="?"))
    record_run(tracked, "rslad", 0.7, **teachers_by_role(robust="b"))
    record_run(tracked, "kd", 0.3, seed=0, **teachers_by_role(robust="a"))
    record_run(tracked, "kd", 0.2, seed=1, **teachers_by_role(robust="b"))
    record_run(tracked, "iad2", 0.6, **teachers_by_role(robust="b", natural="c"))
    for method, aa, letter in (("trades", 0.9, "a"), ("natural", 0.3, "c")):
        record_run(
            tracked,
            method,
            aa,
            role="teacher",
            student="big",
            teacher="none",
            checksums={"best": 64 * letter},
        )
    section = build_sections(collect(tracked.folder))[0]
    kept = {row.method: robustness_kept(row, section.teachers) for row in section.tables[0].rows}
    assert {name for name, share in kept.items() if not math.isnan(share)} == {"gacd", "ard"}


def test_fp32_for_want_of_bf16_is_noted(tracked: Records) -> None:
    record_run(tracked, "gacd", 0.8, training_path=f"memory kept, {NO_BF16}")
    record_run(tracked, "rslad", 0.8, training_path="bf16")
    rows = build_sections(collect(tracked.folder))[0].tables[0].rows
    assert {row.method: "in fp32 for want of bf16 in 1 of 1 runs" in row.notes for row in rows} == {
        "gacd": True, "rslad": False
    }  # fmt: skip


def test_robustness_kept_needs_a_robust_teacher(tracked: Records) -> None:
    record_run(tracked, "kd", 0.05, teacher="big-natural")
    record_run(tracked, "natural", 0.04, role="teacher", student="big", teacher="none")
    section = build_sections(collect(tracked.folder))[0]
    assert math.isnan(robustness_kept(section.tables[0].ranked[0], section.teachers))
