"""List methods, suites, data sets, models and attacks."""

import dataclasses
from dataclasses import dataclass

import methods
from bench.cli.parsing import Command

CORRUPTIONS = "noise-1 to noise-5, blur-, contrast- and jpeg-: common corruptions, in no ball"


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List methods, suites, data sets, models and attacks."""


def list_names(_: ListOptions) -> int:
    """Print everything that has a name."""
    from attacks import catalog
    from bench import datasets, models
    from bench.protocol import suites

    transferable = [name for name in catalog.ATTACKS if catalog.is_transferable(name)]
    transfer = f"transfer: made on another network ({', '.join(transferable)})"
    print_section("methods", {name: describe_plainly(name) for name in methods.names()})
    print_section("suites", {name: suite.about for name, suite in suites.SUITES.items()})
    print_section("data sets", {name: info.about for name, info in datasets.DATASETS.items()})
    print_section("models", dict.fromkeys(models.EXAMPLES, ""))
    print_section("attacks", catalog.ABOUT | {"NAME@surrogate": transfer})
    print_section("controls", {"corruptions": CORRUPTIONS})
    return 0


def print_section(title: str, entries: dict[str, str]) -> None:
    """Print names and what they are."""
    print(title)
    for name, description in entries.items():
        print(f"  {name:18}{description}".rstrip())


def describe_plainly(name: str) -> str:
    """Return a method's formula and defaults, and what is wrong with a plugin of its name."""
    fault = methods.plugin_fault(name) if name in methods.plugins() else ""
    if fault and name not in methods.builtin():
        return fault
    method = methods.load(name)
    description = " ".join((method.__doc__ or "").partition("\n\n")[0].split())
    values = [f"{field.name}={field.default}" for field in dataclasses.fields(method)]
    if values:
        description += f" [{', '.join(values)}]"
    if fault:
        description += f"; a plugin of this name {fault}"
    return description


COMMAND = Command(ListOptions, list_names)
