"""Published numbers: the file, the lookup, and a column of their own in every format."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sites
from record_store import Records
from sites import Reader, render_markdown
from test_leaderboards import NASTY, scores

import leaderboards
import methods
from bench import datasets
from bench.protocol import suites
from leaderboards.read.records import COLUMNS, collect
from leaderboards.tables import published
from leaderboards.tables.suite_tables import build_sections

ROBUST = {"eps": 8 / 255, "limit_train": None}


def record_run(
    tracked: Records, method: str, aa: float, experiment: str = "cifar@1", **changes: Any
) -> None:
    """Record a run of the published task, with `changes`."""
    tags = {"dataset": "cifar10", "student": "resnet18", "teacher": "resnet18-trades"} | changes
    params = ROBUST | tags.pop("params", {})
    metrics = (
        scores(0.84, aa + 0.04, 60)
        | {"test/n": 10_000, "test/aa_n": 10_000}
        | tags.pop("metrics", {})
    )
    tracked.run(method, aa, experiment, metrics=metrics, params=params, **tags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tracked = Records(tmp_path_factory.mktemp("records"))
    record_run(tracked, "rslad", 0.535)
    record_run(tracked, "rslad", 0.5001, teacher="trades_wrn34-10")
    record_run(tracked, "iad2", 0.4858, teacher="resnet18-pgd_at")
    record_run(tracked, "pgd_at", 0.4011, teacher="none")
    record_run(tracked, "gacd", 0.54)
    record_run(
        tracked, "rslad", 0.5, dataset="cifar100", student="mobilenetv2", params={"eps": 0.1}
    )
    record_run(tracked, "trades", 0.48, role="teacher", teacher="none")
    record_run(
        tracked,
        "rslad",
        0.3,
        "cifar-mini@1",
        student="resnet8-w16-s2",
        metrics={"test/n": 1_000, "test/aa_n": 500},
    )
    tracked.run("rslad", 0.7, "digits@2", metrics=scores(0.95, 0.75, 60))
    return tracked.folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> pd.DataFrame:
    return collect(folder)


def cells(text: str, title: str) -> list[str]:
    """The last cell of every line of the Markdown table under a title."""
    lines = text.partition(f"### {title}\n\n")[2].partition("\n\n")[0].splitlines()
    return [re.split(r" \| ", line.removesuffix(" |"))[-1] for line in lines]


def test_every_number_is_well_formed() -> None:
    frame = published._read_numbers()
    assert (
        set(frame["dataset"]) <= {"cifar10", "cifar100"} <= set(datasets.DATASETS)
    )  # 10,000 test images each
    assert set(frame["student"]) <= set(suites.CIFAR.students)
    assert set(frame["attack"]) == {"aa", "clean"}
    assert frame["accuracy_percent"].between(0, 100).all()
    assert all(
        text.strip()
        for column in frame.columns.drop(["accuracy_percent", "note"])
        for text in frame[column]
    )
    assert set(frame["method"]) <= set(methods.names())
    assert not frame.duplicated(frame.columns.drop(["place", "note"]).tolist()).any()


def test_a_clean_accuracy_is_never_below_its_robust_one() -> None:
    keys = ["dataset", "student", "method", "teacher", "checkpoint", "source", "place"]
    both = published._read_numbers().pivot_table("accuracy_percent", keys, "attack").dropna()
    assert len(both) > 200
    assert (both["clean"] > both["aa"]).all()


def test_range_is_over_all_teachers_unless_ours_is_published() -> None:
    rows = published._read_numbers().query(
        "dataset == 'cifar10' and student == 'resnet18' and method == 'rslad'"
    )
    values = rows.loc[rows["attack"] == "aa", "accuracy_percent"]
    every = published.lookup("cifar10", "resnet18", "rslad", "resnet18-trades", "aa")
    assert every
    assert (every.low, every.high) == (
        pytest.approx(values.min() / 100),
        pytest.approx(values.max() / 100),
    )
    assert every.teachers == "any teacher"
    same_teacher = published.lookup("cifar10", "resnet18", "rslad", "TRADES_wrn34-10", "aa")
    assert same_teacher
    assert (same_teacher.low, same_teacher.high, same_teacher.teachers) == (
        0.5132,
        0.5191,
        "this teacher",
    )
    assert set(same_teacher.sources) < set(every.sources)


@pytest.mark.parametrize(
    "key",
    [
        ("cifar10", "resnet18", "gacd", "resnet18-trades"),
        ("digits", "resnet18", "rslad", "x"),
        ("cifar10", "resnet8-w16-s2", "rslad", "x"),
    ],
)
def test_nothing_published_is_none(key: tuple[str, str, str, str]) -> None:
    assert published.lookup(*key, "aa") is None


@pytest.mark.parametrize(
    ("ours", "difference", "remark"),
    [
        (0.5, 0.0, "2 sources, any teacher; ours within"),
        (0.4996, -0.0004, "2 sources, any teacher; ours within"),  # as drawn
        (0.48, -0.02, "2 sources, any teacher; ours 2.0 below"),
        (0.533, 0.013, "2 sources, any teacher; ours 1.3 above"),
        (math.nan, math.nan, "2 sources, any teacher"),
    ],
)
def test_difference(ours: float, difference: float, remark: str) -> None:
    values = published.Published(0.5, 0.52, "any teacher", ("A", "B"))
    assert values.difference(ours) == pytest.approx(difference, nan_ok=True)
    assert values.remark(ours) == remark
    assert values.span == "50.00 to 52.00"
    assert published.Published(0.5, 0.5, "", ("A",)).span == "50.00"
    assert published.Published(0.5, 0.5, "", ("A",)).remark(0.5) == "1 source; ours within"


def test_outside_the_range_it_says_how_both_were_trained() -> None:
    terms = ("teacher A, last checkpoint", "best checkpoint on the test set", "15 epochs")
    values = published.Published(0.5, 0.52, "", ("A",), *terms)
    assert values.remark(0.51) == "1 source; ours within"
    below, above = values.remark(0.48), values.remark(0.54)
    assert below.endswith("2.0 below; ours: 15 epochs; theirs: teacher A, last checkpoint")
    assert above.endswith("2.0 above; ours: 15 epochs; theirs: best checkpoint on the test set")


def test_the_first_images_have_the_range_too(tmp_path: Path) -> None:
    metrics = {"test/aa_n": 1_000}
    training = {"training.epochs": 15}
    record_run(Records(tmp_path), "rslad", 0.3, metrics=metrics, params=training)
    text = render_markdown(collect(tmp_path))
    assert "ours: 15 epochs, AutoAttack on the first 1,000 images; theirs: teacher " in text


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"test/aa_n": 998}},
        {"params": {"eps": 0.05}},
        {"params": {"norm": "L2"}},
        {"params": {"limit_train": 500}},
        {"student": "resnet18-w16"},
        {"dataset": "stl10"},
    ],
)
def test_another_task_has_no_published_value(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / "records"
    record_run(Records(folder), "rslad", 0.5, **changes)
    assert published.HEADING not in render_markdown(collect(folder))
    leaderboards.write(folder, tmp_path)
    assert not [
        name for name in pd.read_csv(tmp_path / "leaderboard.csv") if name.startswith("published/")
    ]


def test_runs_that_did_not_record_their_task_have_none(runs: pd.DataFrame) -> None:
    assert published.HEADING not in render_markdown(runs[list(COLUMNS)].assign(**{"test/aa": 0.5}))


def test_markdown_has_a_last_column(runs: pd.DataFrame) -> None:
    text = render_markdown(runs)
    head, _, *lines = cells(text, "cifar10, resnet18")
    assert head == "*Published AA*"
    assert lines == [
        "",  # gacd
        "40.57 to 52.21 (9 sources, any teacher; ours 1.3 above; ours: 30 epochs; "
        "theirs: teacher LTD WRN-34-10, last checkpoint)",
        "51.32 to 51.91 (3 sources, this teacher; ours 1.3 below; ours: 30 epochs; "
        "theirs: teacher TRADES WRN-34-10, last checkpoint)",
        "48.58 (1 source, this teacher; ours within)",
        "40.85 to 48.04 (9 sources; ours 0.7 below; ours: 30 epochs; theirs: last checkpoint)",
    ]
    assert cells(text, "Teachers")[2] == "46.46 to 49.69 (8 sources; ours within)"
    assert "Published AA, not measured here and no part of the ranking" in text
    assert "SAAD (arXiv 2512.10275v1)" in text


def test_tables_without_published_values_have_no_column(runs: pd.DataFrame) -> None:
    text = render_markdown(runs)
    assert cells(text, "cifar100, mobilenetv2")[0] == "Train min"
    assert published.HEADING not in text.partition("## digits@2")[2]
    assert published.HEADING not in text.partition("## cifar-mini@1")[2].partition("\n## ")[0]
    assert published.HEADING not in sites.task(runs, "digits@2")
    assert published.HEADING in sites.task(runs, "cifar@1-cifar10-resnet18")


def test_measured_values_are_untouched(runs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured_values() -> list[Any]:
        groups = [group for section in build_sections(runs) for group in section.tables]
        return [
            (
                group.columns,
                group.caption,
                [(row.label, row.summaries) for row in group.ranked],
                group.best(column),
            )
            for group in groups
            for column in group.columns
        ]

    with_published = measured_values()
    monkeypatch.setattr(published, "lookup", lambda *key: None)
    assert repr(measured_values()) == repr(with_published)
    assert published.HEADING not in render_markdown(runs)


def test_page_sets_them_apart(runs: pd.DataFrame) -> None:
    page = sites.task(runs, "cifar@1-cifar10-resnet18")
    assert (
        len(re.findall('<th scope="col" class="text published[^>]*>Published AA</th>', page)) == 1
    )
    remark = "9 sources, any teacher; ours 1.3 above; ours: 30 epochs; "
    remark += "theirs: teacher LTD WRN-34-10, last checkpoint"
    assert (
        page.count(
            '<td class="text published extra">40.57 to 52.21'
            f'<span class="setting">{remark}</span></td>'
        )
        == 1
    )
    assert page.count('<td class="text published extra"></td>') == 1  # gacd
    assert "no part of the ranking" in Reader(page).text


def test_csv_has_columns_at_its_end(folder: Path, runs: pd.DataFrame, tmp_path: Path) -> None:
    leaderboards.write(folder, tmp_path)
    read = pd.read_csv(tmp_path / "leaderboard.csv")
    measured = [name for name in read if not name.startswith(("row/", "published/"))]
    assert measured == list(runs.columns.drop("record"))
    assert all(
        name.startswith("published/") for name in list(read)[list(read).index(measured[-1]) + 1 :]
    )
    first = read[(read["method"] == "rslad") & (read["teacher"] == "trades_wrn34-10")].iloc[0]
    assert (first["published/aa_low"], first["published/aa_high"]) == (0.5132, 0.5191)
    assert first["published/aa_difference"] == pytest.approx(0.5001 - 0.5132)
    assert first["published/aa_teachers"] == "this teacher"
    assert first["published/aa_sources"].count(";") == 2
    assert first["published/clean_high"] >= first["published/clean_low"] > 0.8
    assert read.loc[read["method"] == "gacd", "published/aa_low"].isna().all()


def test_text_from_the_file_is_text(runs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    values = published.Published(0.4, 0.5, NASTY, (NASTY,))
    monkeypatch.setattr(published, "lookup", lambda *key: values)
    text, page = render_markdown(runs), sites.task(runs, "cifar@1-cifar10-resnet18")
    assert "<script" not in text
    columns = {
        len(re.findall(r"(?<!\\)\|", line))
        for line in text.splitlines()
        if re.match(r"\| [-\d]+ \| (rslad|gacd)", line)
    }
    assert len(columns) <= 2  # with the column and without
    assert Reader(page).tags.count("script") == 4  # the libraries, the site's own, the charts' data
    assert Reader(page).text.count(NASTY) > 5
