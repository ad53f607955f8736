"""What pages say of a method: methods.json for the built-in ones, the class of a plugin."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import methods
from bench.reference import methods_page
from bench.reference.about import describe_class, describe_method
from methods.base import Paper
from methods.contract import Contract

PLUGIN = '''"""A plugin's title (APT): it explains itself.

Nobody wrote it.
"""

from dataclasses import dataclass

from methods.base import Paper, hp
from methods.kd import Kd


@dataclass(frozen=True)
class Mine(Kd):
    """The formula."""

    paper = Paper("Nobody", "A <title>", "NoConf", 2030, "https://example.org/a?b=1&c")
    third: float = hp(1 / 3, "a share", low=0.1, high=2.0, log=True)
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer a plugin that works and one that cannot be imported."""
    (tmp_path / "about_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("mine", "about_plugin:Mine", methods.GROUP),
        EntryPoint("broken", "no.such.module:Mine", methods.GROUP),
    ]
    monkeypatch.setattr(methods, "entry_points", lambda group: points)


@pytest.mark.parametrize("name", methods.builtin())
def test_the_file_and_the_class_agree(name: str) -> None:
    method = methods.load(name)
    described = describe_method(name)
    assert described == describe_class(method)
    assert described
    section = methods_page.method_section(name, method)
    assert f"{described.title}\n" in section
    for parameter in described.parameters:
        assert f" | {parameter.default} | {parameter.searched} | {parameter.meaning} |" in section


def test_defaults_are_those_of_the_class() -> None:
    for name in methods.builtin():
        method = methods.load(name)
        for parameter in describe_class(method).parameters:
            default = getattr(method(), parameter.name)
            if isinstance(default, float):
                assert float_of(parameter.default) == default
            else:
                assert parameter.default == str(default)


def float_of(text: str) -> float:
    """Return the number in a text such as "5 / 6"."""
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def test_a_plugin_is_described_by_its_class(plugin: None) -> None:
    described = describe_method("mine")
    assert described
    assert described.title == "A plugin's title (APT): it explains itself."
    assert described.full_name == "A plugin's title"
    assert described.formula == "The formula."
    assert described.source == "Nobody wrote it."
    assert described.teachers == ("robust",)
    assert described.paper
    assert described.paper.published == "NoConf 2030"
    third = described.parameters[-1]
    assert (third.name, third.default, third.meaning) == ("third", "1 / 3", "a share")
    assert third.searched == "0.1 to 2, logarithmic"


def test_a_paper_is_not_inherited() -> None:
    class Changed(methods.load("kd")):  # type: ignore[misc]
        pass

    assert Changed.paper is None
    assert describe_class(Changed).paper is None


@pytest.mark.parametrize(
    ("paper", "fault"),
    [
        ("a text", "declare a methods.base.Paper or None"),
        (Paper("", "T", "V", 2030), "paper.authors is empty"),
        (Paper("A", "T", " ", 2030), "paper.venue is empty"),
        (Paper("A", "T", "V", "2030"), "paper.year = '2030' is no year"),  # type: ignore[arg-type]
        (Paper("A", "T", "V", 10**30), "is no year"),
        (Paper("A", "T\x1b[31m", "V", 2030), "paper.title: one line of text"),
        (Paper("A", "\ud800", "V", 2030), "paper.title: one line of text"),
        (Paper("A", 301 * "T", "V", 2030), "paper.title: at most 300 characters"),
        (Paper("A", "T", "V", 2030, "javascript:alert(1)"), "is no address with https://"),
        (Paper("A", "T", "V", 2030, "https://"), "is no address with https://"),
        (Paper("A", "T", "V", 2030, 'https://a/" onclick="b'), "is no address with https://"),
    ],
)
def test_a_wrong_paper_breaks_the_contract(paper: object, fault: str) -> None:
    class Changed(methods.load("kd")):  # type: ignore[misc]
        pass

    Changed.paper = paper
    with pytest.raises(AssertionError, match=re.escape(fault)):
        Contract().test_paper_is_declared(Changed())


def test_what_a_docstring_hides_is_shown_as_escapes() -> None:
    class Hidden(methods.load("kd")):  # type: ignore[misc]
        """A \u202eformula \x1b[31m."""

    assert describe_class(Hidden).formula == "A \\u202eformula \\x1b[31m."


def test_every_method_after_a_paper_links_it() -> None:
    controls = {"crd_adv", "natural"}
    for name in methods.builtin():
        described = describe_method(name)
        assert described
        assert (described.paper is None) == (name in controls)
        assert described.paper is None or described.paper.url.startswith("https://")


def test_a_plugin_that_cannot_be_used_has_no_description(plugin: None) -> None:
    assert describe_method("broken") is None


def test_unknown_methods_have_no_description() -> None:
    assert describe_method("no such method") is None
    assert describe_method("<script>") is None


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from bench.reference.about import describe_method as describe; "
    code += "assert describe('gacd'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
