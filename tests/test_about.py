"""What pages say of a method: methods.json for the built-in ones, the class of a plugin."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from xml.etree import ElementTree

import pytest

import methods
from bench.reference import mathml, methods_page
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
    # A formula is not inherited, and a plugin need not have one.
    assert described.mathml == ""
    assert described.family == "distiller"
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


@pytest.mark.parametrize("name", methods.builtin())
def test_every_method_declares_a_formula_that_is_mathml(name: str) -> None:
    described = describe_method(name)
    assert described
    element = ElementTree.fromstring(described.mathml)
    assert element.tag == "{http://www.w3.org/1998/Math/MathML}math"
    assert element.get("display") == "block"


# The notation of docs/reference/methods.md with usual functions, indices, f for features and p
# for probabilities.
SHARED = set(re.findall(r"\w+", "S T N x y B C L f p e i j k ii ij cc kc KL CE BCE MSE arg sign"))
GREEK = {"alpha", "beta", "gamma", "eta", "kappa", "lambda", "tau"}


@pytest.mark.parametrize("name", methods.builtin())
def test_symbols_of_a_formula_are_fields_or_explained(name: str) -> None:
    method = methods.load(name)
    fields = " ".join(field.name for field in dataclasses.fields(method))
    words = {*re.findall(r"[A-Za-z]+", f"{fields} {method.__doc__}".replace("_", " "))}
    commands = {*re.findall(r"\\([A-Za-z]+)", method.formula)}
    symbols = {*re.findall(r"(?<![A-Za-z\\])[A-Za-z]+", method.formula)} | (commands & GREEK)
    assert symbols - words - SHARED == set()


@pytest.mark.parametrize(
    "latex",
    [
        r"\href{javascript:alert(1)}{x}",
        r"\style{color: red}{x}",
        r"\class{away}{x}",
        r"\nosuchcommand x",
        r"\frac{",
        "\\text{\ud800}",
        r"\text{&#x202e;x}",
        # Commands that call themselves.
        r"\newcommand{\a}{\a\a}\a",
    ],
)
def test_what_is_not_plain_mathematics_is_not_converted(latex: str) -> None:
    assert mathml.convert(latex) == ""


def test_markup_in_a_formula_is_text() -> None:
    class Planted(methods.load("kd")):  # type: ignore[misc]
        formula = r"\text{<script>alert(1)</script>&lt;b&gt;}"

    markup = describe_class(Planted).mathml
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;b&gt;" in markup
    assert "<script" not in markup
    assert "<b>" not in markup


def test_math_blocks_of_docs_become_mathml() -> None:
    page = mathml.on_page_markdown("a\n\n```math\nx < y\n```\n\n```text\nx\n```\n")
    before, block, after = re.split(r"(<div.*</div>)", page)
    assert (before, after) == ("a\n\n", "\n\n```text\nx\n```\n")
    assert [node.text for node in ElementTree.fromstring(block).iter() if node.text] == [*"x<y"]


def test_a_formula_that_is_no_text_breaks_the_contract() -> None:
    class Changed(methods.load("kd")):  # type: ignore[misc]
        pass

    Contract().test_formula_is_declared(Changed())
    Changed.formula = 3
    with pytest.raises(AssertionError, match="formula = 3: declare LaTeX as text"):
        Contract().test_formula_is_declared(Changed())


def test_families() -> None:
    families = {name: card.family for name in methods.builtin() if (card := describe_method(name))}
    controls = {name for name, family in families.items() if family == "control"}
    teacher_free = {name for name, family in families.items() if family == "teacher-free"}
    assert controls == {"crd_adv", "natural"}
    assert teacher_free == {"gkl_at", "lbgat", "mart", "peeraid", "pgd_at", "trades"}
    assert {*families.values()} == {"control", "teacher-free", "distiller"}


def test_a_plugin_that_cannot_be_used_has_no_description(plugin: None) -> None:
    assert describe_method("broken") is None


def test_unknown_methods_have_no_description() -> None:
    assert describe_method("no such method") is None
    assert describe_method("<script>") is None


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from bench.reference.about import describe_method as describe; "
    code += "assert describe('gacd'); assert 'torch' not in sys.modules; "
    code += "assert 'latex2mathml' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
