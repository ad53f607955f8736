"""What a method is, for the pages of the leaderboard.

Built-in methods are read from methods.json, since torch, which they import, takes longer to load
than a whole leaderboard takes to write. `python -m bench.reference.methods_page` writes the file.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from dataclasses import Field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from leaderboards.schema.about import About, Parameter

if TYPE_CHECKING:
    from methods.base import Method

FILE = Path(__file__).with_name("methods.json")


@cache
def describe_method(name: str) -> About | None:
    """Return what the method `name` is; None if it is unknown or its plugin cannot be used."""
    entry = read_file().get(name)
    if entry:
        parameters = tuple(Parameter(**parameter) for parameter in entry["parameters"])
        return About(**entry | {"parameters": parameters})
    # Nobody asked for this plugin by name, so a process of its own tries the import first.
    if name not in methods.plugins() or methods.fault(name):
        return None
    return describe_class(methods.load(name))


@cache
def read_file() -> dict[str, Any]:
    """Return the built-in methods by name."""
    entries: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return entries


def render_file() -> str:
    """Return the text of methods.json. Imports every built-in method."""
    entries = {}
    for name in methods.builtin():
        entries[name] = dataclasses.asdict(describe_class(methods.load(name)))
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def describe_class(method: type[Method]) -> About:
    """Return title, formula, source and hyper-parameters of a method, as its module has them."""
    title, source = module_text(method)
    parameters = []
    for field in dataclasses.fields(method):
        if not is_quirk(field):
            parameters.append(describe_field(field))
    formula = inspect.getdoc(method) or ""
    return About(one_line(title), formula, one_line(source), tuple(parameters))


def module_text(method: type[Method]) -> tuple[str, str]:
    """Return the first paragraph of a method's module docstring, and the rest."""
    documented = inspect.getdoc(sys.modules[method.__module__]) or ""
    title, _, rest = documented.partition("\n\n")
    return title, rest


def describe_field(field: Field[Any]) -> Parameter:
    """Return a hyper-parameter as text."""
    default = default_text(field.default)
    return Parameter(field.name, default, search_range(field), field.metadata["help"])


def is_quirk(field: Field[Any]) -> bool:
    """Whether a field only switches to what the authors' script does, as `quirk` declares it."""
    return bool(field.metadata["quirk"])


def default_text(value: Any) -> str:
    """Return a default as a paper writes it: a float such as 0.8333333333333334 is "5 / 6"."""
    if isinstance(value, float) and len(repr(value)) > 10:
        ratio = Fraction(value).limit_denominator(100)
        return f"{ratio.numerator} / {ratio.denominator}"
    return str(value)


def search_range(field: Field[Any]) -> str:
    """Return the range that a search takes a hyper-parameter from, as text."""
    search = field.metadata["search"]
    if search["choices"]:
        return ", ".join(map(str, search["choices"]))
    if search["low"] is None:
        return "on, off" if isinstance(field.default, bool) else "not"
    scale = ", logarithmic" if search["log"] else ""
    return f"{search['low']:g} to {search['high']:g}{scale}"


def one_line(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())
