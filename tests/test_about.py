"""What pages say of a method, read from its source without an import, is what the method itself says."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

import methods
from bench.reference import methods_page
from bench.reference.about import about


@pytest.mark.parametrize("name", methods.builtin())
def test_source_and_class_agree(name: str) -> None:
    form = methods.load(name)
    found = about(name)
    assert found is not None
    assert found.formula == inspect.cleandoc(form.__doc__ or "")
    assert f"{found.title}\n" in methods_page.section(name, form)
    fields = [field for field in dataclasses.fields(form) if not methods_page.is_quirk(field)]
    said = [
        (parameter.name, parameter.searched, parameter.meaning) for parameter in found.parameters
    ]
    assert said == [
        (field.name, methods_page.searched(field), field.metadata["help"]) for field in fields
    ]
    for parameter, field in zip(found.parameters, fields, strict=True):
        default = (
            fraction(parameter.default) if isinstance(field.default, float) else parameter.default
        )
        assert default == (
            field.default if isinstance(field.default, float) else str(field.default)
        )


def fraction(text: str) -> float:
    """ "5 / 6" as it stands in a source."""
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def test_unknown_methods_have_nothing() -> None:
    assert about("no such method") is None
    assert about("<script>") is None


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from bench.reference.about import about; assert about('gacd'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
