"""Distillation methods, one file each: the file name is the name on the command line.

Packages outside this repository add methods, called plugins, through the entry-point group
`bench.methods`: name = "package.module:Class". Listing the names imports nothing.
"""

import re
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from methods import outside

if TYPE_CHECKING:
    from methods.base import Method

GROUP = "bench.methods"
FOLDER = Path(__file__).parent


class PluginError(Exception):
    """A method that cannot be used. The message is one line with the cause."""


# Cached, because names are checked often and the files do not change.
@cache
def builtin() -> tuple[str, ...]:
    """Return the names of this folder's methods: the files with a line `METHOD = ...`."""
    names = []
    for path in sorted(FOLDER.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if re.search(r"^METHOD\b", text, re.MULTILINE):
            names.append(path.stem)
    return tuple(names)


def plugins() -> dict[str, list[EntryPoint]]:
    """Return the entry points of installed packages by method name, usable or not."""
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        points.setdefault(point.name, []).append(point)
    return points


def names() -> list[str]:
    """Return all method names, those of unusable plugins among them."""
    return sorted({*builtin(), *plugins()})


def load(name: str) -> "type[Method]":
    """Return the class of method `name`, the only one imported. Raises KeyError, PluginError."""
    try:
        return load_builtin(name) if name in builtin() else load_plugin(plugins()[name])
    except PluginError as error:
        kind = "method" if name in builtin() else "plugin"
        raise PluginError(f"{kind} {name!r} {error}") from error


def builtin_fault(name: str) -> str:
    """Import the file of method `name` and return why it cannot be used, "" if it can."""
    try:
        load_builtin(name)
    except PluginError as error:
        return str(error)
    return ""


def load_builtin(name: str) -> "type[Method]":
    """Import a file of this folder and check its class. Raises PluginError with cause and file."""
    try:
        return check_kind(import_object(partial(import_builtin, name)))
    except PluginError as error:
        raise PluginError(f"{error} (methods/{name}.py)") from error


def import_builtin(name: str) -> object:
    """Import a file of this folder; it may raise anything but what would end the program."""
    with outside.contained():
        return import_module(f"methods.{name}").METHOD


def plugin_fault(name: str) -> str:
    """Import the plugin `name` and return why it cannot be used, "" if it can."""
    try:
        load_plugin(plugins()[name])
    except PluginError as error:
        return str(error)
    return ""


def load_plugin(points: list[EntryPoint]) -> "type[Method]":
    """Import and check the plugin of one name. Raises PluginError with cause and package."""
    try:
        check_name(points)
        return import_class(points[0])
    except PluginError as error:
        raise PluginError(f"{error} ({describe_origin(points)})") from error


def check_name(points: list[EntryPoint]) -> None:
    """Raise PluginError if a plugin may not have its name. Nothing is imported."""
    name = points[0].name
    if name in builtin():
        raise PluginError("is ignored, for a built-in method has its name")
    if len(points) > 1:
        raise PluginError("is offered more than once: uninstall all but one")
    if name == "all" or not re.fullmatch(r"\w[\w.-]*", name):
        raise PluginError("is ignored, for the command line cannot name it")


def import_class(point: EntryPoint) -> "type[Method]":
    """Import a plugin's class and check it. Raises PluginError with the cause."""
    method = check_kind(import_object(partial(outside.load, point)))
    try:
        with outside.contained():
            return check_declarations(method)
    except Exception as error:
        raise PluginError(f"cannot be used: {describe_error(error)}") from error


def import_object(load: Callable[[], object]) -> object:
    """Return what `load` imports. Raises PluginError with the cause."""
    try:
        return load()
    except Exception as error:
        raise PluginError(f"cannot be loaded: {describe_error(error)}") from error


def check_kind(candidate: object) -> "type[Method]":
    """Return a method's class. Raises PluginError if it is none."""
    from methods.base import Method

    if not (isinstance(candidate, type) and issubclass(candidate, Method)):
        raise PluginError("cannot be used: no class derived from methods.base.Method")
    if "__dataclass_params__" not in vars(candidate):
        raise PluginError(f"cannot be used: {candidate.__name__} lacks @dataclass(frozen=True)")
    return candidate


def check_declarations(method: "type[Method]") -> "type[Method]":
    """Return a plugin's class, or raise an error if the command line cannot use it."""
    from methods.contract import Contract

    case, contract = method(), Contract()
    contract.test_paper_is_declared(case)
    contract.test_formula_is_declared(case)
    contract.test_hyper_parameters_are_declared(case)
    contract.test_official_values_are_declared(case)
    contract.test_no_flag_is_shadowed(case)
    return method


def describe_origin(points: list[EntryPoint]) -> str:
    """Return the packages that offer a plugin, or the modules where no package is known."""
    origins = [f"package {point.dist.name}" if point.dist else point.value for point in points]
    return " and ".join(sorted(origins))


def describe_error(error: BaseException) -> str:
    """Return an error in one line; the contract's messages need no name of their class."""
    message = " ".join(str(error).split())[:300]
    speaks_plainly = isinstance(error, (AssertionError, PluginError, outside.OutsideError))
    return message if speaks_plainly else f"{type(error).__name__}: {message}"
