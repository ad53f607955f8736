"""LaTeX, JSON and CSV of the records of test_leaderboards, which hold all that they can."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from record_store import Records
from sites import render_markdown
from test_leaderboards import NASTY, scores

import leaderboards
from leaderboards.read.records import collect
from leaderboards.render import json_tables, latex
from leaderboards.tables import ranking, suite_tables

GOLDEN = r"""
    Rank & Method & Teacher & Seeds & Clean & AutoAttack & PGD-20 \\
    \midrule
    1 to 2 & rslad & T1 & 2 & \underline{95.0 $\pm$ 1.4} & \textbf{73.0 $\pm$ 1.4} [57.5, 87.5] & \underline{75.0 $\pm$ 1.4} \\
    1 to 2 & gacd (tau=0.1) & T1 & 3 & \textbf{96.0 $\pm$ 1.0} & \underline{72.0 $\pm$ 1.0} [62.4, 80.1] & \textbf{76.0 $\pm$ 1.0} \\
    \midrule[\cmidrulewidth]
    3 & gacd (tau=0.1; training.epochs=2) & T1 & 1 & 50.0 & 20.0 [13.3, 28.9] & 30.0 \\
    \midrule[\cmidrulewidth]
    4 & kd & T2 & 1 & \textbf{96.0} & 0.0 [0.0, 3.7] & 5.0 \\
    \bottomrule
"""  # noqa: E501
GOLDEN_ROW = {
    "dataset": "digits", "student": "resnet8-w4", "method": "rslad", "variant": "", "changed": "",
    "teacher": "robust", "seeds": 2, "ranks": [1, 2], "tier": 1, "interval": [0.5755, 0.8753],
    "behind_first": [0, 0, 0],
    "cells": {
        "test/clean": {"mean": 0.95, "sd": 0.0141, "n": 2},
        "test/aa": {"mean": 0.73, "sd": 0.0141, "n": 2},
        "test/worst": {"mean": 0.73, "sd": 0.0141, "n": 2},
        "test/pgd20": {"mean": 0.75, "sd": 0.0141, "n": 2},
        "test_last/aa": {"mean": 0.7, "sd": None, "n": 1},
        "cost/train_seconds": {"mean": 120, "sd": 42.4264, "n": 2},
    },
    "missing": [], "flags": {}, "marks": [], "notes": [], "published": None,
    "commands": ["python -m bench run --suite digits"],
}  # fmt: skip
GOLDEN_LINES = """\
row/rank_first,row/rank_last,row/tier,row/aa_low,row/aa_high,row/behind_first,row/behind_first_low,row/behind_first_high,row/marks,experiment,method
1,2,1,0.6237,0.8008,0.0100,-0.0234,0.0434,,digits@1,gacd
1,2,1,0.6237,0.8008,0.0100,-0.0234,0.0434,,digits@1,gacd
1,2,1,0.6237,0.8008,0.0100,-0.0234,0.0434,,digits@1,gacd
3,3,2,0.1331,0.2893,0.5300,0.4284,0.6316,another protocol,digits@1,gacd
1,2,1,0.5755,0.8753,0.0000,0.0000,0.0000,,digits@1,rslad
1,2,1,0.5755,0.8753,0.0000,0.0000,0.0000,,digits@1,rslad
4,4,3,0.0000,0.0370,0.7300,0.6325,0.8275,sanity flag; uncommitted code,digits@1,kd
"""


@pytest.fixture(scope="module")
def sections(runs: pd.DataFrame) -> list[suite_tables.Section]:
    return suite_tables.build_sections(runs)


def test_latex_is_golden(runs: pd.DataFrame) -> None:
    named = runs[(runs["experiment"] == "digits@1") & ~runs["dataset"].eq(NASTY)].dropna(
        axis="columns", how="all"
    )
    text = latex.render(suite_tables.build_sections(named))
    assert GOLDEN in text
    assert "95~\\% for all pairs" in text
    assert (
        "seeds where there are several. Lines separate tiers. Teacher T1 is robust, T2 is natural.}"
        in text
    )


def test_a_row_in_json_is_golden(runs: pd.DataFrame) -> None:
    content = json.loads(
        json_tables.render(suite_tables.build_sections(runs)),
        parse_float=lambda text: round(float(text), 4),
    )
    task = next(suite for suite in content["suites"] if suite["suite"] == "digits@1")["tasks"][-1]
    row = next(row for row in task["rows"] if row["method"] == "rslad")
    assert len(row.pop("runs")) == 2
    assert row | {"cells": {name: row["cells"][name] for name in GOLDEN_ROW["cells"]}} == GOLDEN_ROW  # type: ignore[attr-defined]


def test_csv_is_golden(folder: Path, tmp_path: Path) -> None:
    leaderboards.write(folder, tmp_path)
    lines = pd.read_csv(
        tmp_path / "leaderboard.csv", dtype=dict.fromkeys(ranking.RANK_COLUMNS, "Int64")
    )
    lines = lines[(lines["experiment"] == "digits@1") & (lines["student"] == "resnet8-w4")]
    lines = lines[lines["method"].isin(["gacd", "rslad", "kd"])]
    assert (
        lines[GOLDEN_LINES.partition("\n")[0].split(",")].to_csv(index=False, float_format="%.4f")
        == GOLDEN_LINES
    )


def test_names_are_text_in_latex(sections: list[suite_tables.Section]) -> None:
    text = latex.render(sections)
    assert r"\$x\$ \textless{}script\textgreater{}alert(\textquotedbl{}x\textquotedbl{})" in text
    assert text.count("{") == text.count("}") + text.count(r"\{") - text.count(r"\}")
    assert latex.escape("\\x_y^2~{50%} #1 [a]") == (
        r"\textbackslash{}x\_y\textasciicircum{}2\textasciitilde{}\{50\%\} \#1 {[}a]"
    )
    assert latex.escape("--- ``é'' 鳥") == (
        r"-{}-{}- \textasciigrave{}\textasciigrave{}é\textquotesingle{}\textquotesingle{} U+9CE5"
    )


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_latex_compiles(sections: list[suite_tables.Section], tmp_path: Path) -> None:
    packages = r"\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}"
    head = rf"\documentclass{{article}}{packages}\begin{{document}}"
    (tmp_path / "t.tex").write_text(f"{head}\n{latex.render(sections)}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:]


def test_json_and_tables_agree(sections: list[suite_tables.Section]) -> None:
    content = json.loads(json_tables.render(sections))
    assert content["schema"] == {"name": "robust-distill-bench/leaderboard", "version": 2}
    assert [suite["suite"] for suite in content["suites"]] == [
        section.experiment for section in sections
    ]
    for suite, section in zip(content["suites"], sections, strict=True):
        for task, group in zip(suite["tasks"], section.tables, strict=True):
            for row, expected in zip(task["rows"], (*group.ranked, *group.incomplete), strict=True):
                assert (row["method"], row["tier"]) == (expected.method, expected.ranking.tier)
                assert row["ranks"] == (expected.ranking.ranks and [*expected.ranking.ranks])
                for column in group.columns:
                    summary = row["cells"].get(column.metric)
                    assert (summary is None) == (not expected[column.metric].n)
                    assert summary is None or summary["mean"] == expected[column.metric].mean
    assert NASTY in json.dumps(content, ensure_ascii=False).replace('\\"', '"')
    cell_of_one_seed = content["suites"][-1]["tasks"][0]["rows"][0]["cells"]["test/aa"]
    assert (cell_of_one_seed["n"], cell_of_one_seed["sd"]) == (1, None)


def test_an_empty_store_gives_empty_tables() -> None:
    assert json.loads(json_tables.render([]))["suites"] == []
    assert latex.render([]).startswith("%")


def test_tuned_rows_are_rows_of_their_own_with_short_names(tmp_path: Path) -> None:
    tracked = Records(tmp_path)
    for seed in range(2):
        tuned: dict[str, Any] = {
            "variant": "tuned, 30 trials, a1b2",
            "sets": "lr,weight_decay",
            "seed": seed,
        }
        tracked.run(
            "rslad", 0.8, params={"training.lr": 0.3}, metrics=scores(0.9, 0.85, 9), **tuned
        )
        tracked.run(
            "rslad", 0.7, params={"training.lr": 0.2}, metrics=scores(0.9, 0.75, 9), seed=seed
        )
    short_training = {"training.lr": 0.2, "training.epochs": 5}
    tracked.run(
        "rslad",
        0.6,
        params=short_training,
        metrics=scores(0.9, 0.7, 9),
        variant="official",
        sets="lr",
    )
    (section,) = suite_tables.build_sections(collect(tmp_path))
    rows = {row.label: row for row in section.tables[0].ranked}
    assert list(rows) == [
        "rslad (tuned, 30 trials, a1b2)",
        "rslad",
        "rslad (official; training.epochs=5)",
    ]
    assert [row.seeds for row in rows.values()] == [2, 2, 1]
    assert [row.marks for row in rows.values()] == [
        ("another protocol",),
        (),
        ("another protocol",),
    ]
    assert "tuned, 30 trials, a1b2" in render_markdown(collect(tmp_path))
