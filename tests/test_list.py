"""`list`: an overview, tables, everything about a name, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import methods
from attacks import catalog
from bench import cli, datasets, models
from bench.cli.listing import readable_value
from bench.datasets.loading import load_data
from bench.models.size import network_size
from bench.protocol import suites
from bench.reference.about import describe_method
from bench.reference.sections import TITLES
from bench.teachers.releases import RELEASES

NAMES = {
    "methods": methods.names(),
    "suites": list(suites.SUITES),
    "datasets": list(datasets.DATASETS),
    "models": list(models.examples()),
    "attacks": catalog.names(),
    "controls": list(catalog.CONTROLS),
    "teachers": [release.name for release in RELEASES],
}


def run_list(words: str) -> int:
    """Run `list` and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["list", *words.split()])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def read_json(words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the document of `list WORDS --json`, the only thing that it prints."""
    assert run_list(f"{words} --json") == 0
    output = capsys.readouterr()
    assert output.err == ""
    document: dict[str, list[dict[str, Any]]] = json.loads(output.out)
    return document


def test_overview_names_everything_in_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(NAMES) == TITLES
    assert run_list("") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    first_words = {line.split()[0] for line in lines if line.startswith("  ") and line.strip()}
    for names in NAMES.values():
        assert first_words.issuperset(names)


@pytest.mark.parametrize("title", TITLES)
def test_a_section_is_a_table_without_cut_names(
    title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_list(title) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "…" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    first_words = {line.split()[0].partition("@")[0] for line in lines if line.strip()}
    assert first_words.issuperset(NAMES[title])


def test_methods_have_full_names_papers_families_and_teachers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_list("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith(" bmtard "))
    assert "Balanced multi-teacher" in line
    assert "Mitigating" in line
    assert re.search(r" TPAMI 2024 +distiller +robust, natural *$", line)


def test_a_method_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_list("adaad") == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    card = describe_method("adaad")
    assert card
    assert card.paper
    assert f"full name {card.full_name}" in words
    assert card.formula in words
    # A link is never broken.
    assert card.paper.url in text
    assert "year 2023" in words
    for parameter in card.parameters:
        assert f"{parameter.name} {parameter.default} {parameter.searched} " in words
    for setting in card.official:
        assert f"{setting.name} {setting.value} {setting.default}" in words
    assert "python -m bench run --method adaad --suite digits" in text


def test_a_suite_in_full_has_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_list("cifar-mini") == 0
    words = " ".join(capsys.readouterr().out.split())
    for fact in (
        "version 3 ",
        "eps 8/255 ",
        "inner step 2.5/255 ",
        "limit train 10,000 ",
        "ema decay 0.99 ",
        "teachers robust arch resnet14-w16-s2 method trades training epochs 10 ",
        "attacks fgsm, pgd20, pgd20_trades, cw_inf, aa ",
        "id cifar-mini@3 ",
    ):
        assert fact in words
    (facts,) = read_json("cifar-mini", capsys)["suites"]
    protocol = json.loads(json.dumps(dataclasses.asdict(suites.CIFAR_MINI)))
    assert facts.items() >= protocol.items()


def test_a_name_of_two_sections_is_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_list("digits") == 0
    text = capsys.readouterr().out
    assert "digits (suites)" in text
    assert "digits (datasets)" in text
    assert set(read_json("digits", capsys)) == {"suites", "datasets"}


def test_a_data_set_says_whether_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (facts,) = read_json(f"cifar10 --data-root {tmp_path}", capsys)["datasets"]
    folder = tmp_path / "cifar-10-batches-py"
    assert (facts["folder"], facts["ready"]) == (str(folder), False)
    assert facts["fault"].endswith(f"is missing from '{folder}'")
    assert "torchvision.datasets.CIFAR10" in facts["source"]
    (facts,) = read_json("digits", capsys)["datasets"]
    assert (facts["folder"], facts["ready"], facts["fault"]) == (None, True, "")
    data = load_data("digits", tmp_path)
    sizes = [facts["num_train"], facts["num_val"], facts["num_test"]]
    assert sizes == [len(data.train), len(data.val), len(data.test)]


@pytest.mark.parametrize("info", datasets.DATASETS.values(), ids=lambda info: info.name)
def test_the_size_of_a_test_set_is_that_of_its_description(info: datasets.Dataset) -> None:
    assert f"{info.num_test:,} test" in info.about


@pytest.mark.parametrize("name", ["resnet8-w4", "resnet32-w5-s2"])
def test_a_model_has_its_size(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (facts,) = read_json(name, capsys)["models"]
    for dataset, count in facts["parameters"].items():
        net = models.build(name, datasets.get(dataset))
        assert count == sum(value.numel() for value in net.parameters())
    assert list(facts["parameters"]) == list(datasets.DATASETS)
    # Tests of test_model.py count them by hand.
    counts = {dataset: network_size(name, dataset).multiply_adds for dataset in datasets.DATASETS}
    assert facts["multiply_adds"] == counts


def test_an_attack_in_full_has_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_list("aa") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "norms Linf, L2" in words
    assert "apgd-t 100 none 1 1 4" in words
    assert "square 5000 none 1 1 2" in words
    (facts,) = read_json("pgd20", capsys)["attacks"]
    assert facts["transfer"] == "pgd20@SURROGATE"
    assert facts["components"][0]["step"] == 2 / 255


def test_a_release_for_two_data_sets_is_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    names = NAMES["teachers"]
    name = next(name for name in names if names.count(name) == 2)
    first, second = read_json(name, capsys)["teachers"]
    assert {first["dataset"], second["dataset"]} == {"cifar10", "cifar100"}
    assert first["command"].endswith(f"{name} FILE --dataset {first['dataset']}")


def test_json_of_everything_has_stable_keys(capsys: pytest.CaptureFixture[str]) -> None:
    document = read_json("", capsys)
    assert tuple(document) == TITLES
    for title, entries in document.items():
        assert [facts["name"] for facts in entries] == NAMES[title]
        keys = set(entries[0])
        assert keys >= {"name", "about"}
        assert all(set(facts) == keys for facts in entries)
        assert read_json(title, capsys) == {title: entries}
    method = document["methods"][0]
    assert set(method["paper"]) == {"authors", "title", "venue", "year", "url"}
    assert set(method["parameters"][0]) == {"name", "default", "searched", "meaning"}
    assert set(method["official"][0]) == {"name", "value", "default", "reason"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rslda", "did you mean rslad or "),
        ("GACD", "did you mean gacd or "),
        ("dataset", "did you mean datasets"),
        ("qqqqqq", "`python -m bench list` shows all names"),
        ("resnet9-w4", "model 'resnet9-w4': the depth must be 6n + 2"),
        ("rslad gacd", "unexpected argument 'gacd'"),
        ("--jsn", "unknown flag --jsn: did you mean --json?"),
    ],
)
@pytest.mark.parametrize("suffix", ["", " --json"])
def test_an_unknown_name_is_one_line(
    word: str, message: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_list(word + suffix) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1


def test_a_broken_plugin_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = EntryPoint("broken", "no.such.module:Method", "bench.methods")
    monkeypatch.setattr(methods, "entry_points", lambda group: [point])
    fault = "cannot be loaded: ModuleNotFoundError: No module named 'no'"
    for words in ("", "methods", "broken"):
        assert run_list(words) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "cannot be loaded:" in text
        assert ("gacd" in text) == (words != "broken")
    (facts,) = read_json("broken", capsys)["methods"]
    assert fault in facts["fault"]
    assert facts["paper"] is None
    (working,) = read_json("gacd", capsys)["methods"]
    assert working.keys() == facts.keys()
    assert working["fault"] == ""


def test_values_as_text() -> None:
    values = [None, (), True, 2021, 45_000, 0.1, 0.0005, 8 / 255, 2.5 / 255, 5 / 6, ("a", 1)]
    texts = ["none", "none", "yes", "2021", "45,000", "0.1", "0.0005", "8/255", "2.5/255", "0.8333"]
    assert [readable_value(value) for value in values] == [*texts, "a, 1"]


@pytest.mark.parametrize("word", ["", "methods", "gacd", "aa", "cifar", "teachers"])
def test_names_need_no_torch(word: str) -> None:
    code = "import sys\nfrom bench.cli import main\ntry:\n main(sys.argv[1:])\nfinally:\n"
    code += " assert 'torch' not in sys.modules\n"
    command = [sys.executable, "-c", code, "list", *word.split()]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
