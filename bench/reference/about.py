"""Descriptions of methods, for the pages of the leaderboard.

Built-in methods are read from methods.json, since torch, which they import, takes longer to load
than a whole leaderboard takes to write. `python -m bench.reference.methods_page` writes the file.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import Field
from fractions import Fraction
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from leaderboards.schema.method_card import HyperParameter, MethodCard

if TYPE_CHECKING:
    from methods.base import Method

FILE = Path(__file__).with_name("methods.json")


@cache
def describe_method(name: str) -> MethodCard | None:
    """Return what the method `name` is; None if it is unknown or its plugin cannot be used."""
    entry = json.loads(FILE.read_text(encoding="utf-8")).get(name)
    if entry:
        parameters = tuple(HyperParameter(**parameter) for parameter in entry["parameters"])
        return MethodCard(entry["title"], entry["formula"], entry["source"], parameters)
    if name not in methods.plugins() or methods.plugin_fault(name):
        return None
    return describe_class(methods.load(name))


def describe_class(method: type[Method]) -> MethodCard:
    """Return title, formula, source and hyper-parameters of a method, from its docstrings."""
    title, source = module_text(method)
    # A quirk is no hyper-parameter: it only switches to what the authors' script does.
    fields = [field for field in dataclasses.fields(method) if not field.metadata["quirk"]]
    parameters = tuple(describe_field(field) for field in fields)
    return MethodCard(one_line(title), cleandoc(method.__doc__ or ""), one_line(source), parameters)


def module_text(method: type[Method]) -> tuple[str, str]:
    """Return the first paragraph of the docstring of a method's module, and the others."""
    title, _, source = cleandoc(sys.modules[method.__module__].__doc__ or "").partition("\n\n")
    return title, source


def describe_field(field: Field[Any]) -> HyperParameter:
    """Return a hyper-parameter as text."""
    search, default = field.metadata["search"], str(field.default)
    if isinstance(field.default, float) and len(default) > 10:
        # 0.8333333333333334 is 5 / 6 in the paper.
        ratio = Fraction(field.default).limit_denominator(100)
        default = f"{ratio.numerator} / {ratio.denominator}"
    if search["choices"]:
        searched = ", ".join(map(str, search["choices"]))
    elif search["low"] is None:
        searched = "on, off" if isinstance(field.default, bool) else "not"
    else:
        scale = ", logarithmic" if search["log"] else ""
        searched = f"{search['low']:g} to {search['high']:g}{scale}"
    return HyperParameter(field.name, default, searched, field.metadata["help"])


def one_line(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())
