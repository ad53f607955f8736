"""What a method is, read from its source: nothing is imported, since torch would take longer than a whole leaderboard."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import methods
from leaderboards.schema.method_card import HyperParameter, MethodCard


@dataclass(frozen=True)
class Source:
    """The classes of a module by name, and where it has the names of others from."""

    tree: ast.Module
    classes: dict[str, ast.ClassDef]
    origins: dict[str, str]


def about(name: str) -> MethodCard | None:
    """Title, formula, source and hyper-parameters of the method `name`; None where they cannot be read."""
    try:
        module, shape = _place(name)
        source = _source(module)
        found = source.classes[shape or _method(source)]
        title, _, rest = (ast.get_docstring(source.tree) or "").partition("\n\n")
        parameters = tuple(_parameters(module, found.name).values())
        return MethodCard(_line(title), ast.get_docstring(found) or "", _line(rest), parameters)
    except (
        KeyError,
        OSError,
        ImportError,
        SyntaxError,
        ValueError,
    ):  # of a plugin that is gone or keeps no source
        return None


def _place(name: str) -> tuple[str, str]:
    """Module and class of a method; the class is "" for the built-in ones, whose module names it."""
    if name in methods.builtin():
        return f"methods.{name}", ""
    point = _plugins()[name][0]
    return point.module, point.attr


_plugins = cache(methods.plugins)  # the search goes through every installed package


@cache
def _source(module: str) -> Source:
    found = find_spec(module)
    if not found or not found.origin:
        raise ImportError(module)
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    imports = (
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    )
    return Source(
        tree, classes, {name.name: str(node.module) for node in imports for name in node.names}
    )


def _method(source: Source) -> str:
    """The name in `METHOD = Name`."""
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "METHOD":
            return ast.unparse(node.value)
    raise KeyError("METHOD")


def _parameters(module: str, name: str) -> dict[str, HyperParameter]:
    """Hyper-parameters by name, inherited ones first, as a dataclass orders them."""
    source = _source(module)
    if name not in source.classes:
        return _parameters(source.origins[name], name) if name in source.origins else {}
    found: dict[str, HyperParameter] = {}
    for base in reversed(source.classes[name].bases):
        found |= _parameters(module, ast.unparse(base))
    return found | dict(_own(source.classes[name]))


def _own(shape: ast.ClassDef) -> Iterator[tuple[str, HyperParameter]]:
    for node in shape.body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == "hp"
        ):
            default, meaning = node.value.args[:2]
            given = {
                word.arg or "": ast.literal_eval(word.value)
                for word in node.value.keywords
                if word.arg in SEARCH
            }
            name = ast.unparse(node.target)
            yield (
                name,
                HyperParameter(
                    name,
                    _value(default),
                    searched(given, ast.unparse(default)),
                    ast.literal_eval(meaning),
                ),
            )


SEARCH = ("low", "high", "log", "choices")


def _value(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text.strip("'") if text.startswith("'") else text


def searched(given: dict[str, Any], default: str) -> str:
    """The search range in words."""
    if given.get("choices"):
        return ", ".join(map(str, given["choices"]))
    if given.get("low") is None:
        return "on, off" if default in ("True", "False") else "not"
    return f"{given['low']:g} to {given['high']:g}{', logarithmic' if given.get('log') else ''}"


def _line(text: str) -> str:
    return " ".join(text.split())
