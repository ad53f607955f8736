"""The page of GACD's ablation: differences to the figure's form, from records of its suites."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping

import numpy as np
import pytest
from record_store import TAGS

from bench.execution.plan import PlannedRun, plan_runs
from bench.protocol.options import RunOptions
from bench.reference import gacd_page
from leaderboards.schema.metrics import CLEAN, MONITOR, NUM_ATTACKED, NUM_IMAGES, RANK_METRIC
from leaderboards.schema.record import Record, build_record

LABELS = np.arange(360) % 10


def planned(suite: str) -> list[PlannedRun]:
    runs = plan_runs(RunOptions(suite=suite), {})
    return [run for run in runs if run.spec.role == "student"]


def row_of(run: PlannedRun) -> str:
    return f"{run.spec.method} {run.variant}".strip()


def make_record(run: PlannedRun, robust: int, clean: int = 350) -> Record:
    """Make the record of a run of which so many of 360 images survive, with a bit of luck."""
    luck = run.spec.seed
    survived = np.arange(360) < robust + luck
    right = np.arange(360) < clean + luck
    return build_record(
        spec_id=run.spec.id,
        run_id=uuid.uuid5(uuid.NAMESPACE_URL, run.spec.id).hex,
        start_time=1,
        spec=json.loads(run.spec.json()),
        tags=TAGS,
        metrics={
            **{NUM_IMAGES: 360, NUM_ATTACKED: 360},
            **{CLEAN: right.mean(), RANK_METRIC: survived.mean()},
        },
        labels=LABELS,
        predictions=(LABELS + ~right) % 10,
        survived=survived,
        checksums={},
        environment={},
        curves={f"{MONITOR}weight_spread": [(0, 0.5), (1, 0.25)]},
    )


def make_records(suite: str, robust: Mapping[str, int], keep: int = 99) -> dict[str, Record]:
    """Return records of the first rows of a suite; 300 images survive unless `robust` says so."""
    rows = list(dict.fromkeys(map(row_of, planned(suite))))[:keep]
    runs = [run for run in planned(suite) if row_of(run) in rows]
    return {run.spec.id: make_record(run, robust.get(row_of(run), 300)) for run in runs}


def section(page: str, suite: str) -> str:
    return page.partition(f"## {suite}@1")[2].partition("\n## ")[0]


def test_a_page_without_records_says_how_to_make_them() -> None:
    page = gacd_page.render({})
    for suite in ("gacd-ablation", "gacd-ablation-cifar"):
        text = section(page, suite)
        assert "No records yet" in text
        assert f"`python -m bench run --suite {suite}`" in text


def test_every_row_of_the_suites_is_described() -> None:
    for suite in gacd_page.SUITES:
        assert {row_of(run) for run in planned(suite.name)} == gacd_page.CHANGES.keys()


def test_a_row_that_differs_matters_and_the_others_stay_open() -> None:
    """Sixty images fewer are 16.7 points; equal rows have an interval around 0."""
    records = make_records("gacd-ablation", {"gacd tau=0.5": 240})
    page = gacd_page.render(records)
    text = section(page, "gacd-ablation")
    assert "14 rows, 3 seeds, AutoAttack on 360 test images." in text
    assert "No records yet" in section(page, "gacd-ablation-cifar")
    table = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", text, re.M)[:14])
    assert table["gacd"].startswith("nothing: the figure's form | 83.6 |  | 97.5 |")
    gap, low, high = map(float, re.findall(r"[+-]\d+\.\d", table["gacd tau=0.5"])[:3])
    assert gap == -16.7
    assert low < -16.7 < high < 0
    robust, _, clean = text.partition("**AutoAttack.**")[2].partition("**Clean accuracy.**")
    assert re.findall("^- `(.*)` (costs|gains): ", robust, re.M) == [("gacd tau=0.5", "costs")]
    undecided = robust.partition("Undecided")[2]
    assert "`gacd weight=none` (" in undecided
    assert "`gacd tau=0.5`" not in undecided
    assert "No row can be told from the figure's form." in clean


def test_no_difference_that_was_told_is_below_the_least_that_could_be() -> None:
    intervals = {"crd_adv": (0.02, 0.01, 0.03), "gacd tau=0.1": (0.0, -0.05, 0.05)}
    text = gacd_page.describe_decisions("AutoAttack", intervals, 3)
    assert "- `crd_adv` gains: +2.0 [+1.0, +3.0] points" in text
    assert "`gacd tau=0.1` (5.0). No difference below 1.0 points could be told." in text


def test_one_seed_compares_networks() -> None:
    records = make_records("gacd-ablation-cifar", {"gacd bank=1024": 330})
    text = section(gacd_page.render(records), "gacd-ablation-cifar")
    assert "14 rows, 1 seed, " in text
    assert "networks are compared, not methods" in text
    assert "- `gacd bank=1024` is above it: +8.3 [" in text


def test_rows_without_all_seeds_are_named_and_left_out() -> None:
    records = make_records("gacd-ablation", {}, keep=3)
    last = planned("gacd-ablation")[8].spec
    del records[last.id]
    text = section(gacd_page.render(records), "gacd-ablation")
    assert "2 rows, 3 seeds" in text
    assert "Not recorded yet: `gacd teacher_input=clean`, `gacd weight=none`, " in text


def test_the_control_alone_has_no_differences() -> None:
    text = section(gacd_page.render(make_records("gacd-ablation", {}, keep=1)), "gacd-ablation")
    assert "1 row, 3 seeds" in text
    assert "**AutoAttack.**" not in text


def test_what_training_logged_last_is_shown() -> None:
    text = section(gacd_page.render(make_records("gacd-ablation", {}, keep=2)), "gacd-ablation")
    assert "| `gacd` | - | 0.250 | - |" in text


@pytest.mark.parametrize("label", ["gacd", "crd_adv"])
def test_records_of_other_options_do_not_count(label: str) -> None:
    run = next(run for run in planned("gacd-ablation") if row_of(run) == label)
    other = plan_runs(RunOptions(suite="gacd-ablation", epochs=1), {})
    assert run.spec.id not in {entry.spec.id for entry in other}
