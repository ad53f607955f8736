"""Distillation methods, one file each: the file name is the name on the command line.

Packages outside this repository add methods, plugins, through the entry-point group `bench.methods`: name =
"package.module:Class". Listing the names imports nothing, so it is quick. A plugin asked for by name is imported at once,
however long it takes. Where all methods are wanted, nobody asked for this plugin: a process of its own tries it out first
(`fault`), since an import that hangs, crashes or is cut off half-way cannot be undone in this one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods.base import Method

GROUP = "bench.methods"
SUPPORT = {
    "__init__",
    "adaptive",
    "base",
    "contract",
    "contrast",
    "fold",
    "forms",
    "gradients",
    "inner",
    "recipes",
}
PATIENCE = (
    5  # seconds for the import of a plugin that nobody asked for; that of torch is not counted
)


class PluginError(Exception):
    """A plugin cannot be used. The message is one line with the cause."""


def builtin() -> list[str]:
    """Names of the methods in this folder."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in SUPPORT
    )


def plugins() -> dict[str, list[EntryPoint]]:
    """What installed packages offer by name, whether it can be used or not."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def names() -> list[str]:
    """All method names, those of plugins that cannot be used among them."""
    return sorted({*builtin(), *plugins()})


def load(name: str) -> type[Method]:
    """The class of method `name`; only that method's module is imported.

    Raises KeyError for an unknown name and PluginError for a plugin that cannot be used.
    """
    if name in builtin():
        method: type[Method] = import_module(f"methods.{name}").METHOD
        return method
    points = plugins()[name]
    try:
        check_name(points)
        return opened(points[0])
    except PluginError as error:
        raise PluginError(f"plugin {name!r} {error} ({origin(points)})") from error


def fault(name: str) -> str:
    """Why the plugin `name` cannot be used, "" if it can; whatever its import does, it does in another process."""
    points = plugins()[name]
    try:
        check_name(points)
        try_out(points[0])
    except PluginError as error:
        return f"{error} ({origin(points)})"
    return ""


def check_name(points: list[EntryPoint]) -> None:
    """Raises PluginError if a plugin may not have its name, as far as can be seen without an import."""
    name = points[0].name
    if name in builtin():
        raise PluginError("is ignored, for a built-in method has its name")
    if len(points) > 1:
        raise PluginError("is offered more than once: uninstall all but one")
    if name == "all" or not re.fullmatch(r"\w[\w.-]*", name):
        raise PluginError("is ignored, for the command line cannot name it")


def opened(point: EntryPoint) -> type[Method]:
    """A plugin's class, which keeps the part of the contract that the command line leans on. Raises PluginError."""
    try:
        form = point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"cannot be loaded: {brief(error)}") from error
    try:
        check_form(form)
    except Exception as error:
        raise PluginError(f"cannot be used: {brief(error)}") from error
    found: type[Method] = form
    return found


def check_form(form: object) -> None:
    """Raises what is wrong with a plugin's class: its kind, its making, its hyper-parameters."""
    from methods.base import Method
    from methods.contract import Contract

    if not (isinstance(form, type) and issubclass(form, Method)):
        raise PluginError("no class derived from methods.base.Method")
    if "__dataclass_params__" not in vars(form):
        raise PluginError(f"{form.__name__} lacks @dataclass(frozen=True)")
    case, contract = form(), Contract()
    contract.test_hyper_parameters_are_declared(case)
    contract.test_official_form_is_declared(case)
    contract.test_no_flag_is_shadowed(case)


def try_out(point: EntryPoint) -> None:
    """Loads a plugin in a process of its own, which an alarm ends after PATIENCE. Raises PluginError."""
    code = "import sys, methods; methods.alone(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, point.name, point.value, str(PATIENCE)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == -signal.SIGALRM:
        raise PluginError(
            f"is left out: its import takes more than {PATIENCE} s; --method with its name waits for it"
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() if done.returncode == 1 else []
        raise PluginError(
            said[-1] if said else f"cannot be loaded: its import ends Python with {done.returncode}"
        )


def alone(name: str, value: str, seconds: str) -> None:
    """What the process of `try_out` does: ends with 1 and the cause as its last line if the plugin cannot be used."""
    import methods.contract  # noqa: F401  brings torch before the clock starts

    signal.alarm(int(seconds))
    try:
        opened(EntryPoint(name, value, GROUP))
    except PluginError as error:
        sys.exit(str(error))


def origin(points: list[EntryPoint]) -> str:
    """The packages that offer a plugin, or what they point to."""
    return " and ".join(
        sorted(f"package {point.dist.name}" if point.dist else point.value for point in points)
    )


def brief(error: BaseException) -> str:
    """An error in one line; the contract's own words stand alone."""
    text = " ".join(str(error).split())[:300]
    return (
        text
        if isinstance(error, (AssertionError, PluginError))
        else f"{type(error).__name__}: {text}"
    )
