"""Descriptions of methods, read from their source without an import, agree with the methods."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import methods
from bench import methods_page
from bench.about import about


@pytest.mark.parametrize("name", methods.builtin())
def test_source_and_class_agree(name: str) -> None:
    method = methods.load(name)
    description = about(name)
    assert description is not None
    assert description.formula == inspect.cleandoc(method.__doc__ or "")
    assert f"{description.title}\n" in methods_page.section(name, method)
    fields = [field for field in dataclasses.fields(method) if not methods_page.is_quirk(field)]
    for parameter, field in zip(description.parameters, fields, strict=True):
        assert parameter.name == field.name
        assert parameter.searched == methods_page.searched(field)
        assert parameter.meaning == field.metadata["help"]
        if isinstance(field.default, float):
            assert parse_fraction(parameter.default) == field.default
        else:
            assert parameter.default == str(field.default)


def parse_fraction(text: str) -> float:
    """Return the value of a source text such as "5 / 6"."""
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def test_unknown_methods_have_nothing() -> None:
    assert about("no such method") is None
    assert about("<script>") is None


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from bench.about import about; assert about('gacd');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
