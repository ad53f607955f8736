"""A real MLflow store with everything that a store can hold, and the tables of its runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sites
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from sites import render_markdown

import leaderboards
from leaderboards.read import client, store
from leaderboards.render import markdown
from leaderboards.render.figures import matplotlib_figures
from leaderboards.schema import fields
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

360 test images. A rank is a range where rows cannot be told apart: 2 to 5 of 8 rows says that \
1 row is significantly better and 3 are significantly worse (paired bootstrap over the same \
images, and over seeds; 95 % for all pairs of the table together). A row of one seed is compared \
with the average spread of the others. Every ranked row below a tier is significantly worse than \
the first row of the tier. In brackets is the row's own 95 % interval over images, and over seeds \
where there are several.

Incomplete, not ranked:

- ard, teacher robust, 1 seed: no AutoAttack, Worst, PGD-20

Notes:

- kd, teacher natural, 1 seed: uncommitted code in 1 of 1 runs; flag softmax-output in 1 of 1 \
runs: every output is a probability distribution, not logits
"""


class Store:
    """Write runs as the benchmark does, with verdicts on 100 images if `artifacts` is a folder."""

    def __init__(self, uri: str, artifacts: Path | None = None) -> None:
        self.uri, self.artifacts = uri, artifacts
        self.client = MlflowClient(tracking_uri=uri)
        self.clock = 1_700_000_000_000
        self.parents: dict[str, tuple[str, str]] = {}

    def _parent(self, name: str) -> tuple[str, str]:
        if name not in self.parents:
            experiment = self.client.create_experiment(
                name, artifact_location=self.artifacts.as_uri() if self.artifacts else None
            )
            group = self.client.create_run(experiment, tags={"role": "group"})
            self.client.set_terminated(group.info.run_id)
            self.parents[name] = experiment, group.info.run_id
        return self.parents[name]

    def run(self, method: str, aa: float | None, experiment: str = "digits@1", **tags: Any) -> str:
        status, metrics, params, survived = (tags.pop(key, default) for key, default in RUN)
        tags = TAGS | {"method": method, "spec_id": f"{method}{aa}{self.clock}"} | tags
        experiment_id, parent = self._parent(experiment)
        self.clock += 60_000
        run_id = self.client.create_run(experiment_id, start_time=self.clock).info.run_id
        scores = {} if aa is None else {"test/aa": aa, "test/worst": aa}
        self.client.log_batch(
            run_id,
            metrics=[
                Metric(key, value, 0, 0)
                for key, value in (scores | {"test/n": 360} | metrics).items()
            ],
            params=[
                Param(key, str(value))
                for key, value in ({"eps": 0.15, "training.epochs": 30} | params).items()
            ],
            tags=[
                RunTag(key, value) for key, value in (tags | {"mlflow.parentRunId": parent}).items()
            ],
        )
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        if self.artifacts and aa is not None:
            if survived is None:
                survived = np.arange(100) < round(100 * aa)
            path = self.verdicts(run_id)
            path.parent.mkdir(parents=True)
            arrays = {"clean": survived, "robust_aa": survived}
            np.savez_compressed(path, key="", costs="{}", flags="{}", **arrays)
        return run_id

    def verdicts(self, run_id: str) -> Path:
        assert self.artifacts
        return self.artifacts / run_id / "artifacts" / "verdicts" / "verdicts_best_aa.npz"


RUN: tuple[tuple[str, Any], ...] = (
    ("status", "FINISHED"),
    ("metrics", {}),
    ("params", {}),
    ("survived", None),
)
TAGS = {
    "role": "student",
    "suite": "digits",
    "dataset": "digits",
    "student": "resnet8-w4",
    "teacher": "robust",
    "variant": "",
    "seed": "0",
    "status_note": "",
    "code_dirty": "false",
    "command": "python -m bench run --suite digits",
}


def scores(clean: float, pgd: float, seconds: float, **more: float) -> dict[str, float]:
    return {
        "test/clean": clean,
        "test/pgd20": pgd,
        "cost/train_seconds": seconds,
        "train/adv": 1.0,
        **more,
    }


def fill(tracked: Store) -> None:
    """Record everything that a store can hold: seeds, doubts, teachers, unfinished runs."""
    for seed, aa in enumerate((0.71, 0.72, 0.73)):
        last = {"test_last/aa": 0.68, "test_last/pgd20": 0.7} if seed == 0 else {}
        numbers = scores(aa + 0.24, aa + 0.04, 60) | last
        tracked.run(
            "gacd", aa, variant="tau=0.1", seed=str(seed), metrics=numbers, params={"seed": seed}
        )
    two_epochs = {"metrics": scores(0.5, 0.3, 6), "params": {"training.epochs": 2}}
    tracked.run("gacd", 0.2, variant="tau=0.1", **two_epochs)
    tracked.run("rslad", 0.9, spec_id="again", metrics=scores(0.9, 0.9, 1))
    tracked.run(
        "rslad", 0.74, spec_id="again", metrics=scores(0.96, 0.76, 150) | {"test_last/aa": 0.7}
    )
    tracked.run("rslad", 0.95, spec_id="again", status="FAILED", metrics=scores(1, 1, 1))
    tracked.run("rslad", 0.72, seed="1", metrics=scores(0.94, 0.74, 90))
    flags = '{"softmax-output": "every output is a probability distribution, not logits"}'
    tracked.run(
        "kd",
        0.0,
        teacher="natural",
        code_dirty="true",
        flags=flags,
        metrics=scores(0.96, 0.05, 30),
    )
    tracked.run(
        "ard",
        None,
        metrics={"test/clean": 0.9, "test/pgd20": float("inf"), "cost/train_seconds": 30},
    )
    tracked.run("iad", None, status="RUNNING", metrics={"test/clean": 0.9})
    tracked.run("iad", 0.5, status="KILLED", metrics={"test/clean": 0.9})
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
        metrics=scores(0.8, 0.5, 9) | {"test/square: 5000": 0.6, "test/aa_n": 100},
        **named,
    )
    tracked.run("old", 0.9, experiment="digits@0", metrics=scores(0.9, 0.9, 9))
    tracked.run(
        "pgd_at", 0.45, experiment="cifar@1", dataset="cifar10", metrics={"test/clean": 0.8}
    )
    tracked.run("pgd_at", 0.45, experiment="somebody else's", metrics={"test/clean": 0.8})


def test_collect_keeps_finished_children_of_suites(runs: pd.DataFrame) -> None:
    assert len(runs) == 14
    assert set(runs["experiment"]) == {"digits@0", "digits@1", "cifar@1"}
    assert runs["superseded"].sum() == 1
    assert runs.loc[runs["superseded"], "test/aa"].item() == 0.9
    assert runs["start_time"].is_monotonic_increasing
    assert "param/eps" in runs
    assert "train/adv" not in runs
    assert runs.loc[runs["method"] == "ard", "test/pgd20"].isna().all()


def by_client(uri: str) -> pd.DataFrame:
    with client.open_client(uri) as reader:
        return store._to_frame(*reader.runs(None, (fields.FINISHED,)))


@pytest.mark.parametrize("page", [2, 1000])
def test_database_and_client_give_the_same_frame(
    uri: str, runs: pd.DataFrame, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE_SIZE", page)
    frame = by_client(uri)
    pd.testing.assert_frame_equal(frame, runs)
    assert (
        frame.attrs
        == runs.attrs
        == {"problems": ["runs that did not finish are left out: 1 FAILED, 1 KILLED, 1 RUNNING"]}
    )


@pytest.mark.parametrize(
    ("suite", "count"), [("cifar", 1), ("digits@0", 1), ("digits", 13), ("none", 0)]
)
def test_collect_one_suite(uri: str, suite: str, count: int) -> None:
    assert len(store.collect(uri, suite)) == count


def test_a_file_that_is_no_store_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("no database\n" * 100)
    with pytest.raises(store.StoreError, match="cannot read the tracking store") as caught:
        store.collect(f"sqlite:///{file}")
    assert "\n" not in str(caught.value)


def test_dead_server_is_one_clear_error() -> None:
    before = dict(os.environ)
    with pytest.raises(store.StoreError, match=r"store http://127\.0\.0\.1:9: ") as caught:
        store.collect("http://user:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)
    assert dict(os.environ) == before


def test_a_missing_store_is_empty_and_is_not_created(tmp_path: Path) -> None:
    database, out = tmp_path / "mlflow.db", tmp_path / "new" / "out"
    written = leaderboards.write(f"sqlite:///{database}", out)
    assert not database.exists()
    assert [path.name for path in written] == [
        "index.html",
        *(f"leaderboard.{kind}" for kind in KINDS),
    ]
    for path in written[:2]:
        assert "python -m bench run --method gacd --suite digits" in path.read_text()


def test_write_everything(uri: str, tmp_path: Path) -> None:
    leaderboards.write(uri, tmp_path)
    kinds = {
        path.parent.name: sorted(tmp_path.glob(f"{path.parent.name}/*"))
        for path in tmp_path.glob("*/*")
    }
    counts = {name: len(paths) for name, paths in kinds.items()}
    assert counts == {"assets": 7, "tasks": 4, "methods": 9, "runs": 13}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "index.html",
        *(f"leaderboard.{kind}" for kind in sorted(KINDS)),
    ]
    assert len(pd.read_csv(tmp_path / "leaderboard.csv")) == 14


def test_markdown_golden(runs: pd.DataFrame) -> None:
    named = runs[(runs["experiment"] == "digits@1") & ~runs["dataset"].eq(NASTY)]
    assert GOLDEN in render_markdown(named.dropna(axis="columns", how="all"))


def test_another_teacher_of_the_same_name_is_another_row(tmp_path: Path) -> None:
    tracked = Store(f"sqlite:///{tmp_path}/mlflow.db")
    for seed, teacher in enumerate(("big-1", "big-1", "big-2")):
        tracked.run("ard", 0.5, seed=str(seed), teacher="big", params={"teachers.robust": teacher})
    tracked.run("ard", 0.4, teacher="small", params={"teachers.robust": "small-3"})
    (section,) = build_sections(store.collect(f"sqlite:///{tmp_path}/mlflow.db"))
    rows = sorted((row.label, row.teacher, row.seeds) for row in section.tables[0].ranked)
    assert rows == [
        ("ard", "big", 2),
        ("ard", "small", 1),
        ("ard (teachers.robust=big-2)", "big", 1),
    ]


def test_a_change_that_no_variant_names_makes_another_row(tmp_path: Path) -> None:
    tracked = Store(f"sqlite:///{tmp_path}/mlflow.db")
    for seed in range(3):
        tracked.run(
            "ard", 0.5, seed=str(seed), params={"hyper.tau": "1.0", "tuned": "0", "eps": "0.1"}
        )
    tracked.run("ard", 0.9, seed="3", params={"hyper.tau": "2.0", "tuned": "0", "eps": "0.1"})
    tracked.run("ard", 0.8, seed="4", params={"hyper.tau": "1.0", "tuned": "30", "eps": "0.1"})
    tracked.run(
        "ard",
        0.7,
        seed="5",
        params={"hyper.tau": "1.0", "tuned": "0", "eps": "0.01"},
        sets="param/eps,eps",
    )
    (section,) = build_sections(store.collect(f"sqlite:///{tmp_path}/mlflow.db"))
    rows = [(row.label, row.seeds) for row in section.tables[0].ranked]
    assert rows == [
        ("ard (hyper.tau=2.0)", 1),
        ("ard (tuned=30)", 1),
        ("ard (eps=0.01)", 1),
        ("ard", 3),
    ]


def test_sections_come_newest_version_first(runs: pd.DataFrame) -> None:
    assert [section.experiment for section in build_sections(runs)] == [
        "cifar@1",
        "digits@1",
        "digits@0",
    ]


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
    bare = runs[list(store.COLUMNS)]
    assert "no AutoAttack" in render_markdown(bare)
    site = sites.render(bare)
    assert "no run has an AutoAttack accuracy yet" in site["tasks/digits@1-digits-resnet8-w4.html"]
    assert "No accuracy was recorded." in site[f"runs/{bare['run_id'].iloc[-1]}.html"]


def test_import_is_cheap() -> None:
    heavy = "{'torch', 'bench', 'methods', 'attacks', 'mlflow', 'pandas', 'matplotlib', 'jinja2'}"
    code = f"import sys, leaderboards; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_whole_package_needs_no_torch(uri: str, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, leaderboards;"
        "leaderboards.write(sys.argv[1], pathlib.Path(sys.argv[2]));"
        "assert not {'torch', 'bench', 'methods', 'attacks'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, uri, str(tmp_path)], check=True)
