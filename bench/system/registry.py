"""Values by name: those of this repository, and those that installed packages offer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.system.errors import BenchError, UsageError, one_line, unknown_name
from bench.system.log import LOGGER
from methods import outside

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Values of one type by name. What cannot be used is an error of one line for its name alone.

    kind: the word of messages, "dataset". group: the entry points of packages, each
    `name = "package.module:VALUE"`; they are imported when they are asked for. builtin: what this
    repository has; a package cannot take one of its names. faults: its files that cannot be used.
    """

    kind: str
    value_type: type[T]
    group: str
    builtin: dict[str, T]
    faults: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return all names, those of unusable values among them. Nothing is imported."""
        outside = {point.name for point in entry_points(group=self.group)}
        return [*self.builtin, *sorted((self.faults.keys() | outside) - self.builtin.keys())]

    def get(self, name: str) -> T:
        """Return a value. Raise UsageError for an unknown name, BenchError for an unusable one."""
        if name in self.builtin:
            return self.builtin[name]
        if name in self.faults:
            raise BenchError(f"{self.kind} {name!r} {self.faults[name]}")
        points = list(entry_points(group=self.group, name=name))
        if not points:
            raise unknown_name(self.kind, name, self.names())
        origins = " and ".join(sorted(map(describe_origin, points)))
        if len(points) > 1:
            raise BenchError(f"{self.kind} {name!r} is offered more than once: {origins}")
        try:
            return check_value(outside.load(points[0]), name, self.value_type)
        except Exception as error:
            raise BenchError(f"{self.kind} {name!r} {describe_fault(error)} ({origins})") from error

    def usable(self) -> Iterator[tuple[str, T]]:
        """Yield names and values; a warning names each that cannot be used."""
        for name in self.names():
            try:
                yield name, self.get(name)
            except BenchError as error:
                LOGGER.warning(f"warning: {error}")


def collect_files(
    folder: Path, package: str, attribute: str, value_type: type[T]
) -> tuple[dict[str, T], dict[str, str]]:
    """Import the files of a folder that declare a value, in the order of their names.

    Args:
        folder: of the package.
        package: its name, "bench.datasets".
        attribute: what such a file has a line for, "DATASET".
        value_type: the type of the value, which has a `name`: the file's, with "-" for "_".

    Returns: the values by name, and by the file's name why it cannot be used.
    """
    values, faults = {}, {}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if not re.search(rf"^{attribute}\b", text, re.MULTILINE):
            continue
        name = path.stem.replace("_", "-")
        try:
            with outside.contained():
                value = getattr(import_module(f"{package}.{path.stem}"), attribute)
            values[name] = check_value(value, name, value_type)
        except Exception as error:
            faults[name] = f"{describe_fault(error)} ({path.name})"
    return values, faults


def check_value(value: Any, name: str, value_type: type[T]) -> T:
    """Return a value if it has the type and the name that it is offered under."""
    if not isinstance(value, value_type):
        kind = f"{value_type.__module__}.{value_type.__name__}"
        raise UsageError(f"no {kind} but {type(value).__name__}")
    if getattr(value, "name", name) != name:
        raise UsageError(f"its name is {value.name!r}")  # type: ignore[attr-defined]
    return value


def describe_fault(error: BaseException) -> str:
    """Say in a line why a value cannot be used."""
    speaks_plainly = isinstance(error, (UsageError, outside.OutsideError))
    kind = "" if speaks_plainly else f"{type(error).__name__}: "
    return f"cannot be used: {kind}{one_line(error)}"


def describe_origin(point: EntryPoint) -> str:
    """Return the package of an entry point, or its module where no package is known."""
    return f"package {point.dist.name}" if point.dist else point.value
