"""Descriptions of methods, for the pages of the leaderboard.

Built-in methods are read from methods.json, since torch, which they import, takes longer to load
than a whole leaderboard takes to write. `python -m bench.cli.generated_files` writes the file.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import Field
from fractions import Fraction
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from bench.reference import mathml
from leaderboards.schema.fields import escape_unprintable
from leaderboards.schema.method_card import HyperParameter, MethodCard, OfficialSetting, PaperCard

if TYPE_CHECKING:
    from methods.base import Method

FILE = Path(__file__).with_name("methods.json")


def describe_method(name: str) -> MethodCard | None:
    """Return what the method `name` is; None if it is unknown or its plugin cannot be used."""
    # A new file of methods/ is not in methods.json yet.
    if name in methods.builtin() and name in read_cards():
        return read_cards()[name]
    try:
        return describe_class(methods.load(name))
    except (KeyError, methods.PluginError):
        return None


@cache
def read_cards() -> dict[str, MethodCard]:
    """Return what methods.json says of each built-in method."""
    from pydantic import TypeAdapter

    return TypeAdapter(dict[str, MethodCard]).validate_json(FILE.read_bytes())


def describe_class(method: type[Method]) -> MethodCard:
    """Return what a method is, from its docstrings and declarations."""
    title, source = module_text(method)
    # A quirk is no hyper-parameter: it only switches to what the authors' script does.
    fields = [field for field in dataclasses.fields(method) if not field.metadata["quirk"]]
    return MethodCard(
        title=one_line(title),
        formula="\n".join(map(escape_unprintable, cleandoc(method.__doc__ or "").split("\n"))),
        source=one_line(source),
        parameters=tuple(describe_field(field) for field in fields),
        teachers=tuple(method().teacher_roles),
        paper=PaperCard(**dataclasses.asdict(method.paper)) if method.paper else None,
        official=describe_official(method),
        mathml=mathml.convert(mathml.wrap_lines(method.formula)) if method.formula else "",
    )


def describe_official(method: type[Method]) -> tuple[OfficialSetting, ...]:
    """Return what `--official` sets: fields of the method, then settings of the training."""
    settings = []
    for field in dataclasses.fields(method):
        value = field.metadata["official"]
        if value is not None:
            default, reason = str(field.default), field.metadata["help"]
            settings.append(OfficialSetting(field.name, str(value), default, reason))
    for name, value, reason in method().official_recipe():
        settings.append(OfficialSetting(name, str(value), "", reason))
    return tuple(settings)


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
    """Return a text in one line; what is not printable as escapes."""
    return escape_unprintable(" ".join(text.split()))
