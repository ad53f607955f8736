"""The networks by name. Each file of `families` that declares `NAMES` is a family.

NAMES: regular expressions of its names -> what such a network is. The first that fits counts.
EXAMPLES: some names, for `list`.
build(info, **parts): the network for a data set. parts: the named groups of the name, as text.

`build` returns a `Net`, or any `nn.Module` that returns logits. The constants are literals: they
are read without importing the file, which loads torch.

Packages outside this repository add families, called plugins, through the entry-point group
`bench.models`: name = "package.module", a module with the same three names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from bench.datasets import CIFAR10, Dataset
from bench.system.errors import UsageError, unknown_name
from methods import outside

if TYPE_CHECKING:
    from methods.base import Net

GROUP = "bench.models"
FOLDER = Path(__file__).with_name("families")
# Lists of names have commas, addresses of rows have slashes.
SAFE_NAME = re.compile(r"[\w.:+-]+", re.ASCII)


@dataclass(frozen=True)
class Family:
    """The networks of one module; `fault` says why it cannot be used, "" if it can."""

    name: str
    module: str
    names: Mapping[str, str]
    examples: tuple[str, ...]
    fault: str = ""


@dataclass(frozen=True)
class Match:
    """What a name stands for: the module that builds it, the parts of the name."""

    family: Family
    about: str
    parts: dict[str, str]


@cache
def builtin() -> tuple[Family, ...]:
    """Return the families of this repository. Nothing is imported."""
    families = []
    for path in sorted(FOLDER.glob("*.py")):
        if re.search(r"^NAMES\b", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
            module = f"{__name__}.{FOLDER.name}.{path.stem}"
            families.append(read_family(path.stem, module, partial(read_literals, path)))
    return tuple(families)


def plugins() -> list[Family]:
    """Import the families of installed packages and return them, usable or not."""
    points: list[EntryPoint] = sorted(entry_points(group=GROUP))
    return [read_family(point.name, point.module, partial(read_plugin, point)) for point in points]


def read_family(name: str, module: str, read: Callable[[], Mapping[str, Any]]) -> Family:
    """Return a family by what `read` returns; what it raises is the family's fault."""
    try:
        values = read()
        family = Family(name, module, dict(values["NAMES"]), tuple(values["EXAMPLES"]))
        for pattern in family.names:
            re.compile(pattern)
        for example in family.examples:
            assert match_family(family, example), f"{example!r} is no name of the family"
    except Exception as error:
        fault = f"cannot be loaded: {methods.describe_error(error)}"
        return Family(name, module, {}, (), f"models of {module} {fault}")
    return family


def read_literals(path: Path) -> dict[str, Any]:
    """Return the constants of a file that are literals."""
    values = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("NAMES", "EXAMPLES"):
                values[name] = ast.literal_eval(node.value)
    return values


def read_plugin(point: EntryPoint) -> dict[str, Any]:
    """Import a plugin and return what its module declares."""
    values: dict[str, Any] = vars(outside.load(point))
    assert callable(values.get("build")), "no function build(info, **parts)"
    return values


def examples() -> list[str]:
    """Return some names of each family of this repository."""
    return sorted(chain.from_iterable(family.examples for family in builtin()))


def match_family(family: Family, arch: str) -> Match | None:
    """Return what a name stands for in a family, None if it is none of its names."""
    for pattern, about in family.names.items():
        if SAFE_NAME.fullmatch(arch) and (match := re.fullmatch(pattern, arch)):
            parts = {name: part for name, part in match.groupdict().items() if part}
            return Match(family, about, parts)
    return None


def find(arch: str) -> Match:
    """Return what a name stands for. Raise UsageError if that is no network or several."""
    # A plugin is imported where no built-in family has the name, which it cannot take over.
    for families in (builtin, plugins):
        matches = list(filter(None, [match_family(family, arch) for family in families()]))
        if len(matches) > 1:
            modules = " and ".join(match.family.module for match in matches)
            raise UsageError(f"model {arch!r} is offered by {modules}")
        if matches:
            return matches[0]
    names = [*examples(), *chain.from_iterable(family.examples for family in plugins())]
    faults = [family.fault for family in (*builtin(), *plugins()) if family.fault]
    raise UsageError("; ".join([str(unknown_name("model", arch, names)), *faults]))


def check_stated(arch: str, where: str) -> None:
    """Raise UsageError for a network that a file names and a function makes.

    No file of others chooses which code runs here.
    """
    if find(arch).family.name == "factory":
        raise UsageError(f"{where} is made by the function {arch}: name it if you trust it")


def is_name(arch: str) -> bool:
    """Return whether a name has the form of a network's."""
    try:
        return bool(find(arch))
    except UsageError:
        return False


def check(arch: str, info: Dataset = CIFAR10) -> None:
    """Raise UsageError unless `build` accepts these."""
    outline(arch, info)


def build(arch: str, info: Dataset) -> Net:
    """Build a freshly initialised network for a data set, with its normalisation inside.

    Raise UsageError for a name that stands for no network, or for none that fits the data set.
    """
    match = find(arch)
    from bench.models.adapter import as_net

    try:
        with outside.contained():
            return as_net(import_module(match.family.module).build(info, **match.parts), info)
    except UsageError as error:
        raise UsageError(f"model {arch!r}: {error}") from error
    # The code of others may raise anything.
    except Exception as error:
        fault = methods.describe_error(error)
        raise UsageError(f"model {arch!r} cannot be built: {fault}") from error


def outline(arch: str, info: Dataset) -> Net:
    """Build a network without storage, or with it where that fails: some read their numbers."""
    import torch

    find(arch)
    try:
        with torch.device("meta"):
            return build(arch, info)
    except Exception:
        return build(arch, info)


def parse_number(text: str, name: str) -> int:
    """Return a part of a name as a number. Raise UsageError for one out of range."""
    number = int(text)
    if not 1 <= number <= 1024:
        raise UsageError(f"the {name} must be between 1 and 1024")
    return number


def count_blocks(depth: str, outside: int) -> int:
    """Return n of a depth of 6n + `outside`. Raise UsageError for another one."""
    blocks, rest = divmod(int(depth) - outside, 6)
    if rest or blocks < 1 or int(depth) > 1024:
        form = f"6n + {outside}, such as {6 + outside}, and at most 1024"
        raise UsageError(f"the depth must be {form}")
    return blocks
