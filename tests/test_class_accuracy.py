"""Accuracies by class: of records, of the rows of a task, on their page and in its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from record_store import Records
from sites import Reader

import leaderboards
from leaderboards.read.records import collect
from leaderboards.render.figures.class_views import class_views
from leaderboards.render.site.site_map import Site
from leaderboards.schema import metrics
from leaderboards.schema.metrics import CLEAN, RANK_METRIC
from leaderboards.schema.packing import Classes
from leaderboards.schema.record import Record
from leaderboards.stats.ranks import accuracy_interval
from leaderboards.tables.class_accuracy import (
    NO_LABELS,
    NO_PREDICTIONS,
    NO_VERDICTS,
    OTHER_IMAGES,
    ClassTable,
    build_class_table,
    summarise_classes,
)
from leaderboards.tables.suite_tables import build_sections

# Ten images of class 0, of class 1 and of class 3; none of class 2.
LABELS = np.repeat([0, 1, 3], 10).astype(np.uint16)
STEM = "digits@1-digits-resnet8-w4"


def survivors(*counts: int) -> Any:
    """Return of each ten images the first `count` as robust."""
    return np.concatenate([np.arange(10) < count for count in counts])


def make(records: Records, method: str, counts: tuple[int, ...], **content: Any) -> Record:
    """Make a record with so many robust images of each class; clean accuracy is 1."""
    survived = survivors(*counts)
    labels: Classes | None = content.pop("labels", LABELS)
    clean = {"predictions": labels} if content.pop("clean", True) and labels is not None else {}
    values = {metrics.NUM_IMAGES: 30, CLEAN: 1.0, metrics.accuracy_name("pgd20"): 0.9}
    accuracy = float(survived.mean())
    content |= {"labels": labels, "metrics": values, "survived": survived} | clean
    return records.make(method, accuracy, **content)


def write(records: Records, *made: Record) -> Path:
    for record in made:
        (records.folder / record.spec.record_name).write_text(record.to_json())
    return records.folder


def build(folder: Path) -> ClassTable | None:
    runs = collect(folder)
    site = Site(runs, build_sections(runs))
    (task,) = site.tasks
    return build_class_table(task.table, site.runs)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "records")


@pytest.fixture
def folder(records: Records) -> Path:
    """rslad is best on average, fair_rslad on its worst class; gacd kept no predictions."""
    return write(
        records,
        make(records, "rslad", (10, 10, 2), seed=0),
        make(records, "rslad", (10, 9, 4), seed=1),
        make(records, "fair_rslad", (6, 5, 5)),
        make(records, "gacd", (0, 9, 9), clean=False),
    )


@pytest.fixture
def table(folder: Path) -> ClassTable:
    built = build(folder)
    assert built
    return built


def test_the_worst_class_and_the_spread_follow_from_verdicts(records: Records) -> None:
    record = make(records, "gacd", (9, 6, 3))
    assert record.accuracies_by_class[RANK_METRIC] == {0: 0.9, 1: 0.6, 3: 0.3}
    assert record.class_metrics == {
        metrics.WORST_CLASS: 0.3,
        metrics.CLASS_SPREAD: pytest.approx(np.sqrt(0.06)),
        metrics.WORST_CLASS_CLEAN: 1.0,
        metrics.CLASS_SPREAD_CLEAN: 0.0,
    }
    assert not record.metrics.keys() & record.class_metrics


def test_records_without_labels_or_predictions_lack_what_follows(records: Records) -> None:
    assert make(records, "gacd", (9, 6, 3), labels=None).class_metrics == {}
    names = make(records, "gacd", (9, 6, 3), clean=False).class_metrics.keys()
    assert names == {metrics.WORST_CLASS, metrics.CLASS_SPREAD}


def test_the_worst_class_of_a_row_is_that_of_the_mean_over_seeds(table: ClassTable) -> None:
    rows = {row.row.method: row for row in table.rows}
    summary = rows["rslad"].summaries[RANK_METRIC]
    assert summary.accuracies == pytest.approx({0: 1.0, 1: 0.95, 3: 0.3})
    assert summary.images == {0: 10, 1: 10, 3: 10}
    assert (summary.worst, summary.lowest) == (3, pytest.approx(0.3))
    verdicts = np.stack([survivors(2), survivors(4)])
    assert summary.interval == pytest.approx(accuracy_interval(verdicts))
    assert rows["rslad"].row[metrics.WORST_CLASS].mean == pytest.approx(0.3)


def test_another_class_in_each_seed_is_averaged_before_the_lowest(records: Records) -> None:
    made = make(records, "gacd", (2, 8, 9), seed=0), make(records, "gacd", (8, 4, 9), seed=1)
    built = build(write(records, *made))
    assert built
    (row,) = built.rows
    summary = row.summaries[RANK_METRIC]
    assert (summary.worst, summary.lowest) == (0, 0.5)
    assert row.row[metrics.WORST_CLASS].mean == pytest.approx(0.3)


def test_rows_are_by_their_worst_class(table: ClassTable) -> None:
    assert [row.row.method for row in table.rows] == ["fair_rslad", "rslad", "gacd"]
    named = [(position, row.row.method) for position, row in table.claimants]
    assert named == [(1, "fair_rslad"), (2, "rslad")]
    # The worst are 1, 3 and 0, each of one row: the lowest number counts.
    assert table.usual_worst == (0, 1)


def test_without_a_row_that_claims_fairness_none_is_pointed_out(records: Records) -> None:
    built = build(write(records, make(records, "rslad", (9, 6, 3))))
    assert built
    assert built.claimants == []


@pytest.mark.parametrize(
    ("content", "metric", "reason"),
    [
        ({"labels": None}, RANK_METRIC, NO_LABELS),
        ({"clean": False}, CLEAN, NO_PREDICTIONS),
    ],
)
def test_what_is_missing_has_a_reason(
    records: Records, content: dict[str, Any], metric: str, reason: str
) -> None:
    good, bad = make(records, "rslad", (9, 6, 3)), make(records, "gacd", (9, 9, 9), **content)
    built = build(write(records, good, bad))
    assert built
    assert built.rows[-1 if metric == RANK_METRIC else 0].reasons[metric] == reason
    assert built.gaps[f"{metrics.describe_metric(metric).label}: {reason}"] == ["gacd"]


def test_a_run_without_autoattack_and_seeds_on_other_images_say_so(records: Records) -> None:
    plain = {metrics.NUM_IMAGES: 30, CLEAN: 1.0}
    none = records.make("gacd", None, metrics=plain, labels=LABELS, predictions=LABELS)
    reverse = np.ascontiguousarray(LABELS[::-1])
    others = [make(records, "rslad", (9, 6, 3), seed=0)]
    others.append(make(records, "rslad", (9, 6, 3), seed=1, labels=reverse))
    built = build(write(records, none, *others))
    assert built
    reasons = {row.row.method: row.reasons for row in built.rows}
    assert reasons["gacd"] == {RANK_METRIC: NO_VERDICTS}
    assert reasons["rslad"] == {RANK_METRIC: OTHER_IMAGES, CLEAN: OTHER_IMAGES}


def test_without_labels_there_is_no_page(records: Records, tmp_path: Path) -> None:
    folder = write(records, make(records, "gacd", (9, 6, 3), labels=None))
    assert build(folder) is None
    leaderboards.write(folder, tmp_path / "site")
    assert not [*(tmp_path / "site" / "analysis").iterdir()]


def test_one_image_of_a_class_is_enough() -> None:
    summary = summarise_classes(np.array([4], dtype=np.uint16), np.array([[False]]))
    assert (summary.worst, summary.lowest) == (4, 0)
    assert summary.interval[1] > 0.5


def test_the_chart_marks_who_claims_fairness(table: ClassTable) -> None:
    robust, clean = class_views(table)
    series = {item.name: item for item in robust.series}
    assert list(series["Worst class, claims fairness"].x) == [50]
    assert list(series["Worst class"].x) == pytest.approx([30, 0])
    assert list(series["Worst class"].y) == [1, 2]
    assert len(series["Classes"].x) == 9
    # gacd kept no predictions.
    assert {y for item in clean.series for y in item.y} == {0, 1}


def test_the_page_shows_them_and_names_the_gaps(folder: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    leaderboards.write(folder, site)
    page = Reader((site / "analysis" / f"{STEM}-worst-class.html").read_text())
    text = " ".join(page.text.split())
    head, *lines = page.tables["Worst class of digits, resnet8-w4, accuracies in percent"]
    low, high = accuracy_interval(np.stack([survivors(2), survivors(4)]))
    rslad = lines[1]
    assert rslad[head.index("Worst class")] == f"30.0 [{100 * low:.1f}, {100 * high:.1f}]"
    assert rslad[head.index("Class")] == "3"
    assert rslad[head.index("Each run's lowest")] == "30.0 ± 14.1"
    assert lines[2][head.index("Class, clean")] == "-"
    assert "under AutoAttack a class has 10 images" in text
    assert "known to ± 31.0 points" in text
    assert "PGD-20: records keep the verdicts" in text
    assert f"{NO_PREDICTIONS}: gacd" in text
    for other in ("index.html", f"tasks/{STEM}.html"):
        assert f"analysis/{STEM}-worst-class.html" in (site / other).read_text()


def test_the_table_is_a_file_with_every_class(folder: Path, tmp_path: Path) -> None:
    leaderboards.write(folder, tmp_path / "site")
    tables = tmp_path / "site" / "tables"
    lines = pd.read_csv(tables / f"{STEM}-worst-class.csv").set_index("method")
    assert lines.loc["rslad", f"{metrics.WORST_CLASS}_class"] == 3
    assert lines.loc["rslad", f"{metrics.WORST_CLASS}_pooled"] == pytest.approx(0.3)
    assert lines.loc["gacd", "missing"] == NO_PREDICTIONS
    content = json.loads((tables / f"{STEM}-worst-class.json").read_text())
    assert content["rows"][1][RANK_METRIC]["accuracies"] == pytest.approx(
        {"0": 1.0, "1": 0.95, "3": 0.3}
    )


def test_a_run_names_each_class_by_its_number(folder: Path, tmp_path: Path) -> None:
    leaderboards.write(folder, tmp_path / "site")
    runs = collect(folder)
    run_id = runs.loc[runs["method"] == "fair_rslad", "run_id"].item()
    page = Reader((tmp_path / "site" / "runs" / f"{run_id}.html").read_text())
    assert page.tables["Accuracy in percent by class"] == [
        ["Class", "0", "1", "3"],
        ["Clean", "100.0", "100.0", "100.0"],
        ["AutoAttack", "60.0", "50.0", "50.0"],
    ]
