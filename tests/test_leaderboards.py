"""A folder with everything that records can hold, and the tables of its runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sites
from record_store import Records
from sites import render_markdown

import leaderboards
from bench.protocol import suites
from leaderboards.read.records import COLUMNS, collect
from leaderboards.render import json_tables, markdown
from leaderboards.render.figures import matplotlib_figures
from leaderboards.tables.suite_tables import build_sections

NASTY = '<script>alert("x")</script>|`*\'&'
KINDS = ("md", "tex", "json", "csv")
GOLDEN = """\
### digits, resnet8-w4

| Tier | Rank | Method | Teacher | Seeds | Clean | AutoAttack | Worst | PGD-20 \
| AutoAttack, last | Train min |
| ---: | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 1 | 1 to 2 | rslad | robust | 2 | 95.0 ± 1.4 | **73.0 ± 1.4** [57.5, 87.5] | **73.0 ± 1.4** \
| 75.0 ± 1.4 | **70.0** | 2.0 ± 0.7 |
| 1 | 1 to 2 | gacd (tau=0.1) | robust | 3 | **96.0 ± 1.0** | 72.0 ± 1.0 [62.4, 80.1] | 72.0 ± 1.0 \
| **76.0 ± 1.0** | 68.0 | 1.0 ± 0.0 |
| 2 | 3 | gacd (tau=0.1; training.epochs=2) | robust | 1 | 50.0 | 20.0 [13.3, 28.9] | 20.0 \
| 30.0 | - | 0.1 |
| 3 | 4 | kd | natural | 1 | **96.0** | 0.0 [0.0, 3.7] | 0.0 | 5.0 | - | 0.5 |

360 test images, AutoAttack on 100 of them. A row of one seed is compared with the average spread \
of the others. Two rows that truly differ by 22.1 points are told apart in about four of five \
cases. A rank is a range where rows cannot be told apart: 2 to 5 of 8 rows says that 1 row is \
significantly better and 3 are significantly worse (paired bootstrap over the same images, and \
over seeds; 95 % for all pairs of the table together). Every ranked row below a tier is \
significantly worse than the first row of the tier. In brackets is the row's own 95 % interval \
over images, and over seeds where there are several.

Incomplete, not ranked:

- ard, teacher robust, 1 seed: no AutoAttack, Worst, PGD-20

Notes:

- kd, teacher natural, 1 seed: uncommitted code in 1 of 1 runs; flag softmax-output in 1 of 1 \
runs: every output is a probability distribution, not logits
"""


def scores(clean: float, pgd: float, seconds: float, **more: float) -> dict[str, float]:
    return {
        "test/clean": clean,
        "test/pgd20": pgd,
        "cost/train_seconds": seconds,
        **more,
    }


def fill(tracked: Records) -> None:
    """Record everything that a store can hold: seeds, doubts, teachers, a run that was repeated."""
    for seed, aa in enumerate((0.71, 0.72, 0.73)):
        last = {"test_last/aa": 0.68, "test_last/pgd20": 0.7} if seed == 0 else {}
        numbers = scores(aa + 0.24, aa + 0.04, 60) | last
        tracked.run("gacd", aa, variant="tau=0.1", seed=seed, metrics=numbers)
    two_epochs = {"metrics": scores(0.5, 0.3, 6), "params": {"training.epochs": 2}}
    tracked.run("gacd", 0.2, variant="tau=0.1", **two_epochs)
    tracked.run("rslad", 0.9, name="earlier.json", metrics=scores(0.9, 0.9, 1))
    curves = {"train/adv": [(0, 1.0)]}
    numbers = scores(0.96, 0.76, 150) | {"test_last/aa": 0.7}
    tracked.run("rslad", 0.74, metrics=numbers, curves=curves)
    tracked.run("rslad", 0.72, seed=1, metrics=scores(0.94, 0.74, 90))
    flags = '{"softmax-output": "every output is a probability distribution, not logits"}'
    tracked.run(
        "kd",
        0.0,
        teacher="natural",
        code_dirty="true",
        flags=flags,
        metrics=scores(0.96, 0.05, 30),
    )
    tracked.run("ard", None, metrics={"test/clean": 0.9, "cost/train_seconds": 30})
    tracked.run(
        "trades",
        0.83,
        role="teacher",
        student="resnet8-w32",
        teacher="none",
        metrics=scores(0.98, 0.84, 70),
    )
    tracked.run(
        "natural",
        None,
        role="teacher",
        student="resnet8-w32",
        teacher="none",
        metrics=scores(0.99, 0.02, 40),
    )
    named = dict.fromkeys(
        ("variant", "student", "teacher", "status_note", "command", "dataset"), NASTY
    )
    tracked.run(
        f"$x$ {NASTY}",
        0.4,
        metrics=scores(0.8, 0.5, 9) | {"test/square: 5000": 0.6},
        **named,
    )
    tracked.run("old", 0.9, experiment="digits@0", metrics=scores(0.9, 0.9, 9))
    tracked.run(
        "pgd_at", 0.45, experiment="cifar@1", dataset="cifar10", metrics={"test/clean": 0.8}
    )


def test_collect_keeps_the_newest_record_of_a_spec(runs: pd.DataFrame) -> None:
    assert len(runs) == 13
    assert set(runs["experiment"]) == {"digits@0", "digits@1", "cifar@1"}
    (problem,) = runs.attrs["problems"]
    assert re.fullmatch(
        r"earlier.json is left out: digits@1-.*-rslad-seed0-.*.json is of the same spec and newer",
        problem,
    )
    assert sorted(runs.loc[runs["method"] == "rslad", "test/aa"]) == [0.72, 0.74]
    assert runs["start_time"].is_monotonic_increasing
    assert "param/eps" in runs
    assert "train/adv" not in runs
    assert runs.loc[runs["method"] == "ard", "test/pgd20"].isna().all()


@pytest.mark.parametrize(
    ("suite", "count"), [("cifar", 1), ("digits@0", 1), ("digits", 12), ("none", 0)]
)
def test_collect_one_suite(folder: Path, suite: str, count: int) -> None:
    assert len(collect(folder, suite)) == count


def test_without_records_every_file_says_how_to_make_some(tmp_path: Path) -> None:
    written = leaderboards.write(None, tmp_path / "new" / "out")
    assert [path.name for path in written] == [
        "index.html",
        *(f"leaderboard.{kind}" for kind in KINDS),
    ]
    for path in written[:2]:
        assert "python -m bench run --method gacd --suite digits" in path.read_text()


def test_write_everything(folder: Path, tmp_path: Path) -> None:
    leaderboards.write(folder, tmp_path)
    kinds = {
        path.parent.name: sorted(tmp_path.glob(f"{path.parent.name}/*"))
        for path in tmp_path.glob("*/*")
    }
    counts = {name: len(paths) for name, paths in kinds.items()}
    assert counts == {"assets": 7, "tasks": 4, "methods": 9, "runs": 13, "tables": 20}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "index.html",
        *(f"leaderboard.{kind}" for kind in sorted(KINDS)),
        *("models.html", "rows.html", "submit.html"),
    ]
    assert len(pd.read_csv(tmp_path / "leaderboard.csv")) == 13


def test_markdown_golden(runs: pd.DataFrame) -> None:
    named = runs[(runs["experiment"] == "digits@1") & ~runs["dataset"].eq(NASTY)]
    assert GOLDEN in render_markdown(named.dropna(axis="columns", how="all"))


def test_another_teacher_of_the_same_name_is_another_row(tmp_path: Path) -> None:
    tracked = Records(tmp_path / "records")
    for seed, teacher in enumerate(("big-1", "big-1", "big-2")):
        tracked.run("ard", 0.5, seed=seed, params={"teachers.robust": teacher})
    tracked.run("ard", 0.4, params={"teachers.robust": "small-3"})
    (section,) = build_sections(collect(tmp_path / "records"))
    rows = sorted((row.label, row.teacher, row.seeds) for row in section.tables[0].ranked)
    assert rows == [
        ("ard", "big", 2),
        ("ard", "small", 1),
        ("ard (teachers.robust=big-2)", "big", 1),
    ]


def test_a_change_that_no_variant_names_makes_another_row(tmp_path: Path) -> None:
    tracked = Records(tmp_path / "records")
    params = {"hyper.tau": 1.0, "eps": 0.1}
    for seed in range(3):
        tracked.run("ard", 0.5, seed=seed, params=params)
    tracked.run("ard", 0.9, seed=3, params=params | {"hyper.tau": 2.0})
    tracked.run("ard", 0.8, seed=4, params=params | {"tuned": 30})
    tracked.run("ard", 0.7, seed=5, params=params | {"eps": 0.01}, sets="param/eps,eps")
    (section,) = build_sections(collect(tmp_path / "records"))
    rows = [(row.label, row.seeds) for row in section.tables[0].ranked]
    assert rows == [
        ("ard (hyper.tau=2.0)", 1),
        ("ard (tuned=30)", 1),
        ("ard", 3),
        ("ard (eps=0.01)", 1),
    ]


def test_sections_come_newest_version_first(runs: pd.DataFrame) -> None:
    assert [section.experiment for section in build_sections(runs)] == [
        "cifar@1",
        "digits@1",
        "digits@0",
    ]


@pytest.mark.parametrize("suite", ["cifar", "cifar-fast"])
def test_records_of_an_older_version_are_marked_also_alone(suite: str, tmp_path: Path) -> None:
    tracked = Records(tmp_path / "records")
    for method, aa in (("rslad", 0.5), ("kd", 0.1)):
        tracked.run(method, aa, f"{suite}@2", dataset="cifar10", metrics=scores(0.8, aa, 60))
    runs = collect(tracked.folder)
    assert [section.outdated for section in build_sections(runs)] == [False]
    (section,) = build_sections(runs, suites.protocols())
    assert (section.experiment, section.outdated, section.stated) == (f"{suite}@2", True, {})
    leaderboards.write(tracked.folder, tmp_path / "out", protocols=suites.protocols())
    (document,) = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["suites"]
    assert (document["suite"], document["outdated"]) == (f"{suite}@2", True)
    assert "older protocol version" in (tmp_path / "out" / "index.html").read_text()
    (task,) = (tmp_path / "out" / "tasks").glob("*.html")
    assert f"{suite}@2, an older protocol version" in task.read_text()


def test_a_smaller_number_of_images_of_the_last_checkpoint_is_stated(tmp_path: Path) -> None:
    tracked = Records(tmp_path)
    last = {"test_last/aa": 0.4, "test_last/aa_n": 10}
    survived = np.arange(100) % 2 == 0
    tracked.run("rslad", 0.5, survived=survived, metrics=scores(0.8, 0.6, 60) | last)
    (section,) = build_sections(collect(tmp_path))
    (table,) = section.tables
    assert "AutoAttack on 100 of them, the last checkpoint's AutoAttack on 10." in table.caption
    assert table.rows[0].drop == pytest.approx(0.1)


def test_teachers_have_a_table_of_their_own(runs: pd.DataFrame) -> None:
    text = render_markdown(runs).partition("### Teachers")[2]
    assert (
        "| trades | digits | resnet8-w32 | 1 | 98.0 | 83.0 [74.4, 89.1] | 83.0 | **84.0** |" in text
    )
    assert "| natural | digits | resnet8-w32 | 1 | **99.0** | - | - | 2.0 |" in text


def test_names_are_text_in_markdown(runs: pd.DataFrame) -> None:
    text = render_markdown(runs)
    assert "<script" not in text
    line = next(line for line in text.splitlines() if r"| \$x\$" in line)
    assert (
        len(re.findall(r"(?<!\\)\|", line))
        == len(re.findall(r"\|", "| Rank | Method | Teacher | Seeds |")) + 6
    )
    assert "AutoAttack on 100 of them" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("pgd_at", "pgd_at"), ("_a_", r"\_a\_"), ("a|b\\", r"a\|b\\"), ("a\n<b>", "a &lt;b&gt;")],
)
def test_escape(text: str, escaped: str) -> None:
    assert markdown.escape(text) == escaped


def test_labels_do_not_overlap() -> None:
    points = [(100.0, 100.0), (104.0, 101.0), (98.0, 103.0), (101.0, 97.0)]
    boxes = matplotlib_figures.place_boxes(points, [(60.0, 12.0)] * 4, (0.0, 0.0, 400.0, 300.0))
    overlaps = [matplotlib_figures._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert overlaps == [0.0] * 6


def test_runs_without_any_metric_are_listed(runs: pd.DataFrame) -> None:
    bare = runs[list(COLUMNS)]
    assert "no AutoAttack" in render_markdown(bare)
    site = sites.render(bare)
    assert "no run has an AutoAttack accuracy yet" in site["tasks/digits@1-digits-resnet8-w4.html"]
    assert "No accuracy was recorded." in site[f"runs/{bare['run_id'].iloc[-1]}.html"]


def test_import_is_cheap() -> None:
    heavy = "{'torch', 'bench', 'methods', 'attacks', 'mlflow', 'pandas', 'matplotlib', 'jinja2'}"
    code = f"import sys, leaderboards; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_whole_package_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, leaderboards;"
        "leaderboards.write(*map(pathlib.Path, sys.argv[1:]));"
        "assert not {'torch', 'bench', 'methods', 'attacks'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path)], check=True)


def test_the_repositorys_own_tables_keep_their_numbers() -> None:
    """tests/data/tables.json was written before records were of one kind and had one reader."""
    root = Path(__file__).parents[1]
    runs = collect(root / "leaderboards" / "results")
    content = json.loads(json_tables.render(build_sections(runs, suites.protocols())))
    rows = {}
    for suite in content["suites"]:
        for table in (*suite["tasks"], suite["teachers"]):
            for row in table["rows"]:
                setting = (row["method"], row["variant"], row["changed"], row["student"])
                rows[" | ".join(filter(None, (suite["suite"], table["title"], *setting)))] = row
    expected = json.loads((root / "tests" / "data" / "tables.json").read_text())
    assert rows.keys() >= expected.keys()
    for name, numbers in expected.items():
        row = rows[name]
        assert row["interval"] == pytest.approx(numbers.pop("interval"), abs=1e-12), name
        assert (row["ranks"] or [None])[0] == numbers.pop("first_rank"), name
        values = {metric: [*summary.values()] for metric, summary in row["cells"].items()}
        assert {metric: values.get(metric) for metric in numbers} == numbers, name
