"""The pages without JavaScript: text, tables, links, and the numbers of the charts."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pandas as pd
import pytest
import sites
from record_store import Records
from sites import Reader
from test_leaderboards import KINDS, NASTY

import leaderboards
from leaderboards.read.records import collect
from leaderboards.render.figures import plotly_charts
from leaderboards.render.figures.curve_views import run_views
from leaderboards.render.figures.views import Series, View
from leaderboards.render.protocol_text import describe_protocol
from leaderboards.render.site.pages import cost_lines, render_pages
from leaderboards.render.site.site_map import Site, file_names
from leaderboards.schema.method_card import HyperParameter, MethodCard, PaperCard
from leaderboards.tables import suite_tables

TASK = [
    ["Rank", "Method", "AutoAttack", "Clean", "Balance", "Train min", "Worst", "PGD-20",
     "AutoAttack, last", "Teacher", "Seeds"],
    ["1 to 2", "rslad", "73.0 ± 1.4 [57.5, 87.5]", "95.0 ± 1.4", "82.6", "2.0 ± 0.7",
     "73.0 ± 1.4", "75.0 ± 1.4", "70.0", "robust", "run of seed s0 run of seed s1"],
    ["1 to 2", "gacd tau=0.1", "72.0 ± 1.0 [62.4, 80.1]", "96.0 ± 1.0", "82.3", "1.0 ± 0.0",
     "72.0 ± 1.0", "76.0 ± 1.0", "68.0", "robust", "run of seed s0 run of seed s1 run of seed s2"],
    ["3", "gacd tau=0.1; training.epochs=2", "20.0 [13.3, 28.9]", "50.0", "28.6", "0.1", "20.0",
     "30.0", "-", "robust", "run of seed s0"],
    ["4", "kd⚑i", "0.0 [0.0, 3.7]", "96.0", "0.0", "0.5", "0.0", "5.0", "-", "natural",
     "run of seed s0"],
]  # fmt: skip


@pytest.fixture(scope="module")
def site(runs: pd.DataFrame) -> dict[str, str]:
    return sites.render(runs)


@pytest.fixture(scope="module")
def page(site: dict[str, str]) -> str:
    return site["tasks/digits@1-digits-resnet8-w4.html"]


def test_every_name_is_text_on_every_page(site: dict[str, str]) -> None:
    allowed = {"assets/dataTables.min.js", "assets/plotly-basic.min.js", "assets/site.js", None}
    for path, text in site.items():
        reader = Reader(text)
        scripts = [dict(attributes) for tag, attributes in reader.elements if tag == "script"]
        assert {
            (script.get("src") or "").removeprefix("../") or None for script in scripts
        } <= allowed
        assert "b" not in reader.tags
        assert not [name for name, _ in reader.attributes if name.startswith("on")]
        ids = [value for name, value in reader.attributes if name == "id"]
        assert len(ids) == len(set(ids)), path
    pages = [path for path, text in site.items() if NASTY in Reader(text).text]
    assert {path.partition("/")[0] for path in pages} == {
        *("index.html", "rows.html", "tasks", "methods", "runs")
    }


def test_links_lead_to_pages(site: dict[str, str]) -> None:
    tables = {f"leaderboard.{kind}" for kind in KINDS}
    static = {f"assets/{file.name}" for file in leaderboards.STATIC.iterdir()}
    for path, text in site.items():
        links = [
            value for name, value in Reader(text).attributes if name in ("href", "src") and value
        ]
        targets = {
            posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(urldefrag(link)[0])))
            for link in links
            if link[0] != "#" and not link.startswith(("data:", "https:"))
        }
        files = {target for target in targets if target.startswith("tables/")}
        assert targets - {*tables, *static, *files} <= site.keys(), path


def test_file_names_are_safe_and_never_shared() -> None:
    keys = [
        ("a", "b-c"),
        ("a-b", "c"),
        ("A-b", "c"),
        ("../x",),
        ("",),
        ("ä" * 300,),
        ("x" * 300,),
        ("con/..",),
        ("..",),
    ]
    names = file_names(keys)
    assert len({name.lower() for name in names.values()}) == len(keys)
    assert all(
        re.fullmatch(r"[A-Za-z0-9@_-][A-Za-z0-9@._-]{0,100}", name) for name in names.values()
    )
    assert file_names([("digits@3", "digits", "net")]) == {
        ("digits@3", "digits", "net"): "digits@3-digits-net"
    }


def test_names_do_not_overlap_in_a_narrow_frame() -> None:
    points = Series(
        "", [98.9, 99.0, 97.0], [81.9, 81.6, 80.0], names=["a", "b", "x" * 34], shown=[True] * 3
    )
    view = View("scatter", "", "", "", "", (points,), frame=((96, 100), (72, 85)))
    annotations = {
        name["text"]: name for name in plotly_charts.build_chart(view)["layout"]["annotations"]
    }
    heights = [
        320 * (85 - annotations[name]["y"]) / 13 + annotations[name]["ay"]
        for name in ("a", "b", "x" * 34)
    ]
    assert heights[0] + 17 <= heights[1] <= heights[2] - 17
    assert [annotations[name]["xanchor"] for name in ("a", "x" * 34)] == ["left", "right"]
    assert all(name["ay"] <= -17 for name in annotations.values())


def test_long_curves_are_thinned_and_end_where_they_end() -> None:
    (view,) = run_views({"val/robust": (range(250), [0.001 * (step % 250) for step in range(250)])})
    (line,) = view.series
    assert line.x == range(1, 250, 4)
    assert (line.y[-1], view.caption) == (
        pytest.approx(24.9),
        "robust from 0 to 24.9, highest 24.9 at epoch 249.",
    )
    (irregular,) = run_views({"lr": ([0, 1, 4], [1.0, 2.0, 3.0])})[0].series
    assert irregular.x == [0, 1, 4]


def test_front_page_shows_every_task(site: dict[str, str]) -> None:
    reader = Reader(site["index.html"])
    assert reader.tables["Tasks"] == [
        ["Task", "AutoAttack", "May be first", "Kept", "Rows", "Runs"],
        ["cifar10, resnet8-w4 cifar@1", "45.0 [35.6, 54.8]", "pgd_at", "-", "1", "1"],
        [
            f"{NASTY}, {NASTY} digits@1",
            "40.0 [30.9, 49.8]",
            f"$x$ {NASTY} ({NASTY})",
            "-",
            "1",
            "1",
        ],
        [
            "digits, resnet8-w4 digits@1",
            "73.0 ± 1.4 [57.5, 87.5]",
            "rslad, gacd (tau=0.1)",
            "-",
            "5",
            "8",
        ],
    ]
    assert [line[0] for line in reader.tables["Older protocol versions"]] == [
        "Task",
        "digits, resnet8-w4 digits@0",
    ]
    assert ["trades", "83.0 [74.4, 89.1]", "98.0"] in [
        line[:3] for line in reader.tables["Teachers"]
    ]
    assert "l-infinity, eps 0.15 in pixels of [0, 1]" in reader.text


def test_task_page_holds_the_table(page: str) -> None:
    reader = Reader(page)
    assert reader.tables["digits, resnet8-w4"] == TASK
    assert "no AutoAttack, Worst, PGD-20" in reader.text
    assert (
        "softmax-output in 1 of 1 runs: every output is a probability distribution, not logits"
        in reader.text
    )


def test_charts_hold_what_was_measured(page: str) -> None:
    charts = {chart["name"]: chart for chart in Reader(page).data[0]}
    assert [*charts] == ["scatter", "seeds", "attacks", "last", "cost"]
    front, points = charts["scatter"]["data"]
    assert (points["customdata"], points["x"], points["y"]) == (
        ["rslad", "gacd (tau=0.1)", "gacd (tau=0.1; training.epochs=2)", "kd"],
        [95, 96, 50, 96],
        [73, 72, 20, 0],
    )
    assert (front["x"], front["y"]) == ([95, 96], [73, 72])
    assert "no row beats in both: rslad and gacd (tau=0.1)." in charts["scatter"]["caption"]
    assert "1 row lies below the frame" in charts["scatter"]["caption"]
    dots, means = charts["seeds"]["data"]
    assert sorted(zip(dots["y"], dots["x"], strict=True)) == [
        (0, 72),
        (0, 74),
        (1, 71),
        (1, 72),
        (1, 73),
    ]
    assert means["error_x"]["array"][0] == pytest.approx(87.5 - 73, abs=0.1)
    assert (
        "From best to last, on the same images, rslad loses most: 4.0 points."
        in charts["last"]["caption"]
    )
    assert [mark["x"] for mark in charts["cost"]["data"]] == [[2, 1, 0.1, 0.5]]


def test_accuracy_against_eps_is_drawn_where_there_are_several(tmp_path: Path) -> None:
    tracked = Records(tmp_path / "records")
    for seed, (eps, aa) in enumerate(((0.15, 0.7), (0.15, 0.7), (0.1, 0.8), (0.05, 0.9))):
        tracked.run("trades", aa, seed=seed, params={"eps": eps}, metrics={"test/clean": 0.95})
    tracked.run("kd", 0.1, metrics={"test/clean": 0.99})
    text = sites.task(collect(tracked.folder), "digits@1")
    (chart,) = (chart for chart in Reader(text).data[0] if chart["name"] == "eps")
    assert [(line["name"], line["x"], line["y"]) for line in chart["data"]] == [
        ("trades, robust", [0.05, 0.1, 0.15], [90, 80, 70])
    ]


@pytest.mark.parametrize(("norm", "name"), [("Linf", "l-infinity"), ("L2", "L2")])
def test_long_fractions_are_short_and_pixels_are_of_255(norm: str, name: str) -> None:
    recorded = {
        "norm": norm,
        "eps": str(8 / 255),
        "inner_step": str(2.5 / 255),
        "training.lr": "0.2767710726805693",
    }
    sentences = dict(
        describe_protocol(
            [
                {f"param/{name}": text for name, text in recorded.items()}
                | {"seed": "0", "role": "student", "variant": ""}
            ],
            {},
        )
    )
    assert (sentences["Threat"], sentences["Inner attack"], sentences["Training"]) == (
        f"{name}, eps 8/255 in pixels of [0, 1]", "of 2.5/255", "learning rate 0.2768",
    )  # fmt: skip


PROTOCOL = {"training.epochs": 36, "training.lr": 0.2, "eps": 0.15, "inner_steps": 5}
KNOWN = {"training.epochs": 40, "training.lr": 0.2, "attacks": ("pgd20", "aa"), "limit_test": None}
STATED = {name: str(value) for name, value in KNOWN.items()}


def sentences(text: str) -> dict[str, str]:
    """Return the protocol lines of a page, the last topic if several have the name."""
    body = text.partition("Protocol</h")[2].partition("</dl>")[0]
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", body))


@pytest.mark.parametrize(("stated", "epochs"), [({}, 36), (STATED, 40)])
def test_protocol_lines_show_the_values_of_the_suite(
    stated: dict[str, str], epochs: int, tmp_path: Path
) -> None:
    tracked = Records(tmp_path / "records")
    tracked.run("rslad", 0.7, params=PROTOCOL, metrics={"test/clean": 0.9})
    for seed in (2, 10):
        tuned: dict[str, Any] = {"variant": "tuned, 20 trials, ab12", "sets": "lr", "seed": seed}
        tracked.run("rslad", 0.7, params=PROTOCOL | {"training.lr": 0.31}, **tuned)
    for method, trained in (("trades", 18), ("natural", epochs)):
        params = PROTOCOL | {"training.epochs": trained}
        tracked.run(method, 0.8, role="teacher", student="big", params=params, seed=3)
    leaderboards.write(tracked.folder, tmp_path / "out", protocols={"digits@1": stated})
    read = Path.read_text
    index = sentences(read(tmp_path / "out/index.html"))
    (task,) = map(sentences, map(read, tmp_path.glob("out/tasks/*.html")))

    def training(epochs: int, rate: float = 0.2) -> str:
        start = f"{epochs} epochs, batches of 128, multistep schedule, learning rate {rate}"
        return f"{start}, averages of the weights: ema, swa"

    assert index["Training"] == task["Training"] == training(epochs)
    assert index["Teachers"] == "18 epochs (trades)"
    assert "Teachers" not in task
    assert index["Seeds"] == task["Seeds"] == "0 / 2 / 10"
    assert index.get("Attacks") == ("PGD-20, AutoAttack" if stated else "none")
    assert "Data" not in index
    runs = [sentences(read(path)) for path in sorted(tmp_path.glob("out/runs/*.html"))]
    assert sorted(run["Training"] for run in runs) == sorted(
        [training(36), training(36, 0.31), training(36, 0.31), training(18), training(epochs)]
    )


def test_costs_of_the_run_come_before_those_of_attacks() -> None:
    spent = {
        "cost/aa_seconds": 2.0,
        "cost/peak_bytes": 2.0**21,
        "cost/odd_seconds": 1.0,
        "cost/eval_forwards": 1234.0,
        "cost/train_seconds": 30.0,
        "test/aa": 0.5,
    }
    assert cost_lines(spent) == [
        ("Train", "0.5 min"), ("Memory at most", "2 MiB"),
        ("Images forward in evaluation", "1,234"),
        ("AutoAttack", "2.0 s"), ("ODD", "1.0 s"),
    ]  # fmt: skip


def test_run_page_holds_accuracies_costs_and_doubts(folder: Path, tmp_path: Path) -> None:
    leaderboards.write(folder, tmp_path)
    pages = [Reader(path.read_text()) for path in sorted(tmp_path.glob("runs/*.html"))]
    (reader,) = (page for page in pages if "softmax-output" in page.text)
    assert reader.tables["Accuracy in percent by attack and checkpoint"][:2] == [
        ["Attack", "best", "last", "EMA", "SWA"],
        ["Clean", "96.0", "-", "-", "-"],
    ]
    for text in (
        "every output is a probability distribution, not logits",
        "python -m bench run --suite digits",
        "no checksum was recorded",
        "with uncommitted changes",
        "l-infinity, eps 0.15",
        "0.5 min",
        "Not recorded, or the file is missing.",
    ):
        assert text in reader.text


def test_curves_are_drawn_run_by_run_and_averaged_by_method(tmp_path: Path) -> None:
    tracked = Records(tmp_path)
    losses = {"train/ce": [(0, 2.0), (2, 0.0), (4, -2.0)]}
    seeds = []
    for seed in range(3):
        points = [(step, 0.1 * step + 0.01 * seed) for step in range(5)]
        curves = {"val/robust": points} | (losses if seed == 0 else {})
        seeds.append(tracked.run("gacd", 0.7, seed=seed, curves=curves))
    without = tracked.run("kd", 0.1)
    html = sites.render(collect(tmp_path))
    validation, losses = Reader(html[f"runs/{seeds[0]}.html"]).data[0]
    assert validation["data"][0]["y"] == [0, 10, 20, 30, 40]
    assert [losses["data"][0][name] for name in ("x0", "dx", "y")] == [0, 2, [2, 0, -2]]
    assert "robust from 0 to 40, highest 40 at epoch 4" in validation["caption"]
    charts = Reader(html["methods/gacd.html"]).data[0]
    assert [chart["title"] for chart in charts] == ["Robust validation accuracy", "Loss: ce"]
    assert charts[0]["data"][0]["y"] == pytest.approx([1, 11, 21, 31, 41])
    assert "No curves were recorded." in html[f"runs/{without}.html"]


def test_method_page_shows_formula_and_recorded_values(runs: pd.DataFrame) -> None:
    description = MethodCard(
        "A title.",
        "a < b & <i>c</i>",
        "A paper.",
        (HyperParameter("alpha", "5 / 6", "0.5 to 1", "share"),),
        paper=PaperCard("B & <C>", "On <i>x</i>", "NoConf", 2030, 'https://e.org/?a="&b=<c>'),
    )
    recorded = runs.assign(**{"param/hyper.alpha": "0.9", "param/hyper.new": "1"})
    site = Site(
        recorded,
        suite_tables.build_sections(recorded),
        about=lambda name: description if name == "kd" else None,
    )
    html = dict(render_pages(site))
    reader = Reader(html["methods/kd.html"])
    assert "a < b & <i>c</i>" in reader.text
    assert "B & <C>, On <i>x</i>, NoConf 2030" in reader.text
    assert ("href", 'https://e.org/?a="&b=<c>') in reader.attributes
    assert reader.tables["Hyper-parameters of kd"][1:] == [
        ["alpha", "0.9", "5 / 6", "0.5 to 1", "share"],
        ["new", "1", "", "", ""],
    ]
    assert "math" not in reader.tags
    assert "Family: teacher-free" in reader.text
    front = Reader(html["index.html"])
    assert ["kd", "A title.", "teacher-free", "NoConf 2030"] in [
        line[:4] for line in front.tables["Methods over all tasks of current protocol versions"]
    ]
    assert ("href", 'https://e.org/?a="&b=<c>') in front.attributes
    assert "does not know the method" in html["methods/ard.html"]


def test_method_page_sets_the_formula_and_explains_its_symbols(runs: pd.DataFrame) -> None:
    element = '<math display="block"><mi>&lt;b&gt;</mi></math>'
    description = MethodCard("A title.", "a\n\nb: <i>c</i>", "", (), mathml=element)
    site = Site(runs, suite_tables.build_sections(runs), about=lambda name: description)
    html = dict(render_pages(site))["methods/kd.html"]
    assert element in html
    reader = Reader(html)
    assert not {"b", "i"} & {*reader.tags}
    # Once below the formula, once as plain text.
    assert reader.text.count("b: <i>c</i>") == 2


def test_old_pages_are_removed_and_foreign_files_stay(folder: Path, tmp_path: Path) -> None:
    leaderboards.write(folder, tmp_path)
    assert len([*tmp_path.glob("*/*.html")]) > 10
    foreign = tmp_path / "runs" / "mine.html"
    foreign.write_text("<p>Somebody's own file</p>")
    leaderboards.write(None, tmp_path)
    assert [*tmp_path.glob("*/*.html")] == [foreign]


def test_problems_of_the_store_are_listed(runs: pd.DataFrame) -> None:
    damaged = runs.copy()
    damaged.attrs["problems"] = [f"2 runs: {NASTY}"]
    assert f"2 runs: {NASTY}" in Reader(sites.render(damaged)["index.html"]).text


def test_marked_rows_can_be_hidden(page: str, site: dict[str, str]) -> None:
    marks = [
        json.loads(value or "") for name, value in Reader(page).attributes if name == "data-marks"
    ]
    assert marks == [["another protocol"], ["sanity flag", "uncommitted code"]]

    def boxes(text: str) -> set[str | None]:
        """What the tools of a table hide."""
        inputs = [dict(attributes) for tag, attributes in Reader(text).elements if tag == "input"]
        return {box["value"] for box in inputs if (box.get("name") or "").endswith(".hide")}

    assert boxes(page) == {mark for row in marks for mark in row}
    assert boxes(site["tasks/cifar@1-cifar10-resnet8-w4.html"]) == set()


def test_figures_for_papers(folder: Path, tmp_path: Path) -> None:
    leaderboards.write(folder, tmp_path, "digits@1", figures=True)
    kinds = ("scatter", "seeds", "attacks", "last", "cost", "wins")
    plain = {f"digits@1-digits-resnet8-w4-{kind}.{end}" for kind in kinds for end in ("svg", "pdf")}
    contents = {path.name: path.read_bytes() for path in tmp_path.glob("figures/*")}
    assert plain <= contents.keys()
    assert all(
        content.startswith(b"%PDF" if name.endswith("pdf") else b"<?xml")
        for name, content in contents.items()
    )
    assert not any(b"<script" in content for content in contents.values())
    assert b"rslad" in contents["digits@1-digits-resnet8-w4-scatter.svg"]
    assert b"P(row beats column), %" in contents["digits@1-digits-resnet8-w4-wins.svg"]
    assert leaderboards.write(folder, tmp_path, "digits@1", figures=True)
    assert contents == {path.name: path.read_bytes() for path in tmp_path.glob("figures/*")}
