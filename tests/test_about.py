"""What pages say of a method: methods.json for the built-in ones, the class of a plugin."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import methods
from bench.reference import methods_page
from bench.reference.about import describe_class, describe_method

PLUGIN = '''"""A plugin's title.

Paper: nobody's.
"""

from dataclasses import dataclass

from methods.base import hp
from methods.kd import Kd


@dataclass(frozen=True)
class Mine(Kd):
    """The formula."""

    third: float = hp(1 / 3, "a share", low=0.1, high=2.0, log=True)
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer a plugin that works and one that cannot be imported."""
    describe_method.cache_clear()
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
    assert (described.title, described.formula) == ("A plugin's title.", "The formula.")
    assert described.source == "Paper: nobody's."
    third = described.parameters[-1]
    assert (third.name, third.default, third.meaning) == ("third", "1 / 3", "a share")
    assert third.searched == "0.1 to 2, logarithmic"


def test_a_plugin_that_cannot_be_used_has_no_description(plugin: None) -> None:
    assert describe_method("broken") is None


def test_unknown_methods_have_no_description() -> None:
    assert describe_method("no such method") is None
    assert describe_method("<script>") is None


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from bench.reference.about import describe_method as describe; "
    code += "assert describe('gacd'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
