"""The pages of the analysis: numbers of records in tables, charts, matrices and files; gaps."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import analysed
import numpy as np
import pandas as pd
import pytest
from record_store import Records
from sites import Reader

import leaderboards
from leaderboards.read.records import collect
from leaderboards.render.site.boards import table_lines
from leaderboards.render.site.site_map import Site
from leaderboards.schema import analysis
from leaderboards.schema.analysis import measure_name, task_name
from leaderboards.schema.metrics import RANK_METRIC, column_name, describe_metric
from leaderboards.tables.analysis_tables import NOT_ANALYSED, NOT_MEASURED
from leaderboards.tables.model_pairs import architecture_family
from leaderboards.tables.suite_tables import build_sections
from leaderboards.tables.transfer_matrix import build_matrix

STEM = "digits@3-digits-resnet8-w4"
CKA = measure_name("structure", "cka", "features", "adv")
GAP = measure_name("structure", "correlation_gap", "adv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of one task and its teachers."""
    paths = [*analysed.RESULTS.glob("digits@3-*-resnet8-w4-*-seed[01]-*.json")]
    paths += analysed.RESULTS.glob("digits@3-*-resnet8-w16-*.json")
    return analysed.write_analysed(tmp_path_factory.mktemp("records"), paths)


@pytest.fixture(scope="module")
def runs(folder: Path) -> pd.DataFrame:
    return collect(folder)


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    leaderboards.write(folder, out)
    return out


def read(out: Path, page: str) -> Reader:
    return Reader((out / "analysis" / f"{STEM}-{page}.html").read_text())


def values(runs: pd.DataFrame, method: str, metric: str) -> pd.Series:
    chosen = (runs["method"] == method) & (runs["role"] == "student") & (runs["variant"] == "")
    return runs.loc[chosen, metric]


def row_count(runs: pd.DataFrame) -> int:
    return runs[runs["role"] == "student"].groupby(["method", "variant"]).ngroups


def test_a_page_for_each_group_holds_means_of_seeds(out: Path, runs: pd.DataFrame) -> None:
    for group in analysis.GROUPS.values():
        assert group.claim in read(out, group.name).text
    page = read(out, "structure")
    head, *lines = page.tables["Structural knowledge of digits, resnet8-w4, with AutoAttack "
                               "accuracy in percent"]  # fmt: skip
    column = head.index("CKAfeatures, adversarial")
    cells = next(line for line in lines if line[0] == "adaad")
    cka = values(runs, "adaad", CKA)
    assert cells[column] == f"{cka.mean():.3f} ± {cka.std():.3f}"
    assert len(lines) == row_count(runs)


def test_gaps_are_a_sign_with_a_reason(out: Path) -> None:
    page = read(out, "structure")
    assert ("title", "no teacher: its checkpoint is gone") in page.attributes
    assert "no teacher: its checkpoint is gone: mart" in " ".join(page.text.split())
    assert f"{NOT_ANALYSED}: kd" in page.text
    assert "python -m bench analyze RUN" in page.text
    assert f"4 measures: {NOT_MEASURED}: mart" in read(out, "gradients").text


def test_a_group_without_a_measure_says_why(tmp_path: Path) -> None:
    records = Records(tmp_path / "records")
    content: dict[str, Any] = {"version": 1, "images": 100, "gaps": {"tasks": "no other task"}}
    record = records.make("gacd", 0.5, analysis=content)
    (records.folder / record.spec.record_name).write_text(record.to_json())
    leaderboards.write(records.folder, tmp_path / "site")
    (path,) = (tmp_path / "site" / "analysis").glob("*-tasks.html")
    page = Reader(path.read_text())
    assert "No run has a measure of this group." in page.text
    assert "no other task: gacd" in page.text


def test_a_single_gap_names_its_measure(tmp_path: Path) -> None:
    records = Records(tmp_path)
    content: dict[str, Any] = {"version": 1, "images": 100}
    for method, metrics in (("gacd", {CKA: 0.5, GAP: 0.1}), ("rslad", {CKA: 0.5})):
        gaps = {} if GAP in metrics else {"structure/correlation_gap/adv": "a single class"}
        record = records.make(method, 0.5, metrics=metrics, analysis=content | {"gaps": gaps})
        (tmp_path / record.spec.record_name).write_text(record.to_json())
    runs = collect(tmp_path)
    (tables,) = Site(runs, build_sections(runs)).analyses.values()
    expected = {"Correlation gap, adversarial: a single class": ["rslad"]}
    assert tables["structure"].gaps == expected


def test_a_gap_of_a_group_or_a_part_is_the_reason_of_each_metric_below() -> None:
    gaps = {"structure": "group", "structure/adv": "view", "structure/cka/stage1/adv": "metric"}
    reason = analysis.gap_reason
    assert reason(gaps, GAP) == "view"
    assert reason(gaps, measure_name("structure", "cka", "stage1", "adv")) == "metric"
    assert reason(gaps, measure_name("structure", "cka", "stage1", "clean")) == "group"
    assert reason(gaps, measure_name("gradients", "cosine", "adv")) == ""


def test_the_deepest_colour_is_the_closest_to_the_claim(runs: pd.DataFrame) -> None:
    (tables,) = Site(runs, build_sections(runs)).analyses.values()
    table = tables["structure"]
    for metric, closest in ((CKA, max), (GAP, min)):
        measured = [row for row in table.table.rows if row[metric].n]
        row = closest(measured, key=lambda row: row[metric].mean)
        assert table.share(row, metric) == 1
        assert table.position(row, metric) == (1, len(measured))
    sparsity = measure_name("gradients", "sparsity", "adv")
    table = tables["gradients"]
    assert math.isnan(table.share(table.table.rows[0], sparsity))


def test_the_matrix_says_whose_examples_fool_whom(tmp_path: Path) -> None:
    """b gets 40 % wrong on the examples of a; a met none of b; both fool the teacher in 10 %."""
    records = Records(tmp_path)
    fools = measure_name("transferability", "fools_teacher")
    a, b = (records.make(name, 0.5, metrics={fools: 0.1}) for name in ("rslad", "gacd"))
    empty: dict[str, Any] = {"version": 1, "images": 100, "teacher_sha256": "ab" * 32}
    for record, against in ((a, {"ab" * 8: 0.75}), (b, {a.spec_id: 0.6, "0" * 16: 0.9})):
        copy = analysed.copy_record(record, analysis=empty | {"against": against})
        (tmp_path / record.spec.record_name).write_text(copy.to_json())
    runs = collect(tmp_path)
    site = Site(runs, build_sections(runs))
    table = site.tasks[0].table
    matrix = build_matrix(table, [row.method for row in table.rows], site.runs)
    assert matrix
    assert matrix.names == ("teacher", "gacd", "rslad")
    nan = math.nan
    expected = [[nan, nan, 0.25], [0.1, nan, nan], [0.1, 0.4, nan]]
    np.testing.assert_allclose(matrix.rates, expected)


def test_the_matrix_of_all_methods_has_the_teacher(out: Path, runs: pd.DataFrame) -> None:
    caption = (
        "Share of images, in percent, that the column's network gets wrong on the adversarial "
        "examples of the row's"
    )
    head, *lines = read(out, "transferability").tables[caption]
    assert head[1] == lines[0][0] == "teacher"
    # A column for the name and the teacher each; one method has no analysis.
    assert len(head) == len(lines) + 1 == row_count(runs) + 2
    file = pd.read_csv(out / "tables" / f"{STEM}-transfer-matrix.csv", index_col=0)
    assert lines[0][2] == f"{100 * file.iloc[0, 1]:.0f}"


def test_the_chart_of_gradients_highlights_best_natural_and_teacher(
    out: Path, runs: pd.DataFrame
) -> None:
    (charts,) = read(out, "gradients").data
    names = [trace["name"] for trace in charts[0]["data"]]
    students = runs[runs["role"] == "student"]
    best, _ = students.groupby(["method", "variant"])["test/aa"].mean().idxmax()
    assert names == ["Others", best, "natural", "teacher"]
    others, *_, teacher = charts[0]["data"]
    assert (teacher["mode"], teacher["x"]) == ("markers", [0, 1])
    assert others["y"].count(None) == row_count(runs) - 1 - 2  # a gap after each line; kd has none


def test_what_teaches_is_said_as_correlation(out: Path, runs: pd.DataFrame) -> None:
    page = read(out, "what-teaches")
    assert "not that one causes the other" in " ".join(page.text.split())
    _, *lines = page.tables["Spearman's rank correlation of each measure with AutoAttack accuracy"]
    line = next(line for line in lines if line[0] == "CKA, features, adversarial")
    distilled = runs[(runs["role"] == "student") & (runs["teacher"] != "none")]
    expected = distilled[[CKA, RANK_METRIC]].corr("spearman").iloc[0, 1]
    assert line[1].startswith(f"{expected:.2f} [")
    # Five methods attack nothing; of these `kd` has no analysis.
    attacked = distilled[~distilled["method"].isin(["kd", "crd", "fitnet", "kdiga", "rrm"])]
    expected = attacked[[CKA, RANK_METRIC]].corr("spearman").iloc[0, 1]
    assert line[2].startswith(f"{expected:.2f} [")
    assert "Nearest class mean, adversarial" not in page.text


def test_a_run_shows_numbers_maps_and_points(out: Path, runs: pd.DataFrame) -> None:
    run = runs[runs["method"] == "adaad"].iloc[0]
    page = Reader((out / "runs" / f"{run['run_id']}.html").read_text())
    head, *lines = page.tables["Structural knowledge of this run"]
    cka = next(line for line in lines if line[0] == "CKA, features")
    assert cka[head.index("adversarial")] == f"{run[CKA]:.3f}"
    matrices = run["record"].analysis.matrices
    student, teacher = (
        matrices[f"{analysis.CORRELATION}/{name}/adv"] for name in ("student", "teacher")
    )
    _, first, *_ = page.tables["Correlations, difference, adversarial"]
    assert first[2] == str(round(100 * (student[0][1] - teacher[0][1])))
    charts = [chart for charts in page.data for chart in charts]
    assert {"loss", "tsne-clean", "tsne-adv"} <= {chart["name"] for chart in charts}
    tsne = next(chart for chart in charts if chart["name"] == "tsne-adv")
    assert sum(len(trace["x"]) for trace in tsne["data"]) == 360
    looks = {(str(trace["marker"]["color"]), trace["marker"]["symbol"]) for trace in tsne["data"]}
    assert len(looks) == analysed.CLASSES


def test_a_run_without_analysis_says_how_to_make_it(out: Path, runs: pd.DataFrame) -> None:
    run = runs[runs["method"] == analysed.WITHOUT].iloc[0]
    text = (out / "runs" / f"{run['run_id']}.html").read_text()
    assert f"python -m bench analyze {run['run_id']}" in text


def test_a_method_shows_its_position_in_each_task(out: Path, runs: pd.DataFrame) -> None:
    page = Reader((out / "methods" / "adaad.html").read_text())
    caption = "Measures of adaad over tasks, with its position and the range of each task"
    _, *lines = page.tables[caption]
    line = next(line for line in lines if line[0].startswith("CKA, features, adversarial"))
    students = runs[(runs["role"] == "student")]
    means = students.groupby(["method", "variant"])[CKA].mean()
    better = (means > means["adaad", ""]).sum()
    assert line[3] == f"{1 + better} of {row_count(runs) - 2}"
    assert line[4] == f"{means.min():.3f} to {means.max():.3f}"


def test_pages_lead_to_the_analysis_and_back(out: Path) -> None:
    path = f"analysis/{STEM}-structure.html"
    for page in ("index.html", f"tasks/{STEM}.html"):
        assert path in (out / page).read_text()
    page = (out / path).read_text()
    assert f"../tasks/{STEM}.html" in page
    assert f"../analysis/{STEM}-what-teaches.html" in page
    assert "index.html#analysis" in (out / "rows.html").read_text()


def test_the_tables_are_files(out: Path, runs: pd.DataFrame) -> None:
    tables = out / "tables"
    lines = pd.read_csv(tables / f"{STEM}-structure.csv")
    adaad = lines[lines["method"] == "adaad"].iloc[0]
    assert adaad[CKA] == pytest.approx(values(runs, "adaad", CKA).mean())
    assert adaad[f"{CKA}_sd"] == pytest.approx(values(runs, "adaad", CKA).std())
    content = json.loads((tables / f"{STEM}-structure.json").read_text())
    kd = next(row for row in content["rows"] if row["method"] == "kd")
    assert kd[CKA] is None
    assert kd["missing"] == NOT_ANALYSED
    assert "alignment" in content["metrics"][CKA]
    assert CKA in pd.read_csv(out / "leaderboard.csv").columns


def test_boards_of_accuracies_have_no_measures(runs: pd.DataFrame) -> None:
    (section,) = build_sections(runs)
    (table,) = section.tables
    names = set().union(*table_lines(section, table))
    assert not [name for name in names if name.startswith(analysis.ANALYSIS)]


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (CKA, 0.12345, "0.123"),
        (measure_name("structure", "error_agreement", "clean"), -0.05, "-0.050"),
        (measure_name("features", "class_mean", "adv"), 0.5, "50.0 %"),
        (task_name("digits-5-9", "probe", "clean"), 0.912, "91.2 %"),
    ],
)
def test_measures_have_fitting_decimals(metric: str, value: float, text: str) -> None:
    assert describe_metric(metric).format(value) == text


def test_columns_of_measures_have_their_label() -> None:
    assert column_name(CKA) == "CKA, features, adversarial"
    names = [metric for group in analysis.GROUPS for metric in _names(group)]
    assert len({column_name(name) for name in names}) == len(names)


def _names(group: str) -> list[str]:
    return [measure_name(group, measure.name) for measure in analysis.GROUPS[group].measures]


def test_a_site_without_analysis_has_no_such_page(tmp_path: Path) -> None:
    records = Records(tmp_path / "records")
    records.run("gacd", 0.5)
    leaderboards.write(records.folder, tmp_path / "site")
    assert [*(tmp_path / "site" / "analysis").iterdir()] == []
    assert "#analysis" not in (tmp_path / "site" / "index.html").read_text()


def test_pages_of_an_analysis_that_is_gone_are_removed(tmp_path: Path) -> None:
    path = next(analysed.RESULTS.glob("digits@3-*-gacd-*.json"))
    leaderboards.write(analysed.write_analysed(tmp_path / "records", [path]), tmp_path)
    # What teaches and the worst class have a page each.
    assert len([*(tmp_path / "analysis").iterdir()]) == len(analysis.GROUPS) + 2
    leaderboards.write(None, tmp_path)
    assert [*(tmp_path / "analysis").iterdir()] == []


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("resnet8-w4", "resnet"),
        ("resnet18", "resnet"),
        ("preactresnet18-w16", "preactresnet"),
        ("wrn28-10", "wrn"),
        ("wrn70-16-silu", "wrn"),
        ("mobilenetv2", "mobilenetv2"),
        ("vit-tiny", "vit"),
        ("timm:vit_tiny_patch16_224", "vit"),
        ("torchvision.models:densenet121", "densenet"),
        ("7", "7"),
    ],
)
def test_the_family_of_an_architecture(name: str, family: str) -> None:
    assert architecture_family(name) == family


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods from two teachers to two students; iad lacks one pair, kd has one teacher."""
    folder = tmp_path_factory.mktemp("pairs")
    records = Records(folder / "records")
    for teacher, aa in (("resnet8-w16", 0.8), ("wrn28-10", 0.9)):
        records.run("trades", aa, role="teacher", teacher="none", student=teacher)
    accuracies = {
        ("resnet8-w16", "resnet8-w4"): 0.4,
        ("resnet8-w16", "vit-tiny"): 0.2,
        ("wrn28-10", "resnet8-w4"): 0.6,
        ("wrn28-10", "vit-tiny"): 0.3,
    }
    for (teacher, student), aa in accuracies.items():
        name = f"{teacher}-trades"
        records.run("rslad", aa, student=student, teacher=name)
        if (teacher, student) != ("wrn28-10", "vit-tiny"):
            records.run("iad", aa / 2, student=student, teacher=name)
    records.run("kd", 0.7, student="resnet8-w4", teacher="wrn28-10-trades")
    leaderboards.write(records.folder, folder / "site")
    return folder / "site"


def test_models_are_compared_by_family(pairs: Path) -> None:
    page = Reader((pairs / "models.html").read_text())
    head, *lines = page.tables[
        "Mean AutoAttack accuracy by family of teacher and student, with the share of the "
        "teacher's that is kept"
    ]
    assert head == ["Teacher", "Student resnet", "Student vit"]
    # Of rslad alone, which has every pair.
    assert lines[0] == ["resnet", "40.0 %50.0 % kept, 1 method", "20.0 %25.0 % kept, 1 method"]
    assert lines[1][1].startswith("60.0 %66.7 % kept")
    _, *rows = page.tables["digits@1: digits by architecture of teacher and student"]
    assert [row[0].split("r")[0] for row in rows].count("kd") == 0
    assert len(rows) == 7
    (charts,) = page.data
    assert {trace["name"] for trace in charts[0]["data"]} == {"iad", "rslad"}


def test_models_are_a_file(pairs: Path) -> None:
    lines = pd.read_csv(io.StringIO((pairs / "tables" / "models.csv").read_text()))
    line = lines.query("method == 'rslad' and teacher == 'wrn28-10' and student == 'vit-tiny'")
    assert line["kept"].item() == pytest.approx(1 / 3)
    assert line["teacher_family"].item() == "wrn"


def test_one_pair_of_models_is_no_comparison(out: Path) -> None:
    assert "Nothing to compare yet" in (out / "models.html").read_text()
