"""Distillation methods, one file each: the file name is the name on the command line.

Listing the names imports no method, so it is quick and a broken plugin cannot spoil it. Packages outside this
repository add methods through the entry-point group `bench.methods`: name = "package.module:Class".
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods.base import Method

SUPPORT = {"__init__", "adaptive", "base", "contract", "contrast", "inner", "recipes"}


def builtin() -> list[str]:
    """Names of the methods in this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in SUPPORT)


def plugins() -> dict[str, EntryPoint]:
    """Methods of installed packages by name; a built-in name cannot be taken over."""
    return {point.name: point for point in entry_points(group="bench.methods") if point.name not in builtin()}


def names() -> list[str]:
    """All method names that `load` accepts."""
    return sorted({*builtin(), *plugins()})


def load(name: str) -> type[Method]:
    """The class of method `name`; raises KeyError for an unknown name. Only that method's module is imported."""
    outside = plugins()
    if name in outside:
        loaded: type[Method] = outside[name].load()
        return loaded
    if name not in builtin():
        raise KeyError(name)
    method: type[Method] = import_module(f"methods.{name}").METHOD
    return method
