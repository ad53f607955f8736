"""Everything that has a name, as facts of plain values: what `list` prints, or writes as JSON.

A summary loads no torch unless a plugin does. Details take longer: a network is built, the
official files of a data set are looked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods
from attacks import catalog
from bench import datasets, models
from bench.datasets.files.official_files import damage_of, folder_of
from bench.protocol import suites
from bench.reference.about import describe_method
from bench.system.errors import UsageError
from bench.teachers.releases import RELEASES, Release
from leaderboards.schema.method_card import MethodCard

# By key, in the order in which they are shown. Each has a "name" and says "about" in a line.
Facts = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """One kind of thing that has a name.

    summaries: what it lists. others: what else has a name, as a model's follows a pattern.
    details: further facts of one name, for a folder of data sets.
    """

    title: str
    summaries: Callable[[], list[Facts]]
    others: Callable[[str], list[Facts]] = lambda name: []
    details: Callable[[str, Path], Facts] = lambda name, data_root: {}


def find_entries(name: str, data_root: Path) -> dict[str, list[Facts]]:
    """Return all facts of what has this name, by title of the section.

    Raise UsageError for the name of a model that cannot be built, such as "resnet9-w4".
    """
    entries = {}
    for section in SECTIONS:
        matching = [facts for facts in section.summaries() if facts["name"] == name]
        matching = matching or section.others(name)
        if matching:
            details = section.details(name, data_root)
            entries[section.title] = [facts | details for facts in matching]
    return entries


def summarise_method(name: str) -> Facts:
    """Return what a method is, and why it or a plugin of its name cannot be used."""
    described = describe_method(name)
    fault = methods.plugin_fault(name) if name in methods.plugins() else ""
    if name in methods.builtin():
        fault = f"a plugin of this name {fault}" if fault else ""
        # What is described has a file that can be used.
        fault = fault if described else methods.builtin_fault(name)
    card = described or MethodCard("", "", "", ())
    facts = dataclasses.asdict(card)
    del facts["mathml"]
    return {
        "name": name,
        "full_name": card.full_name,
        "about": facts.pop("title"),
        "fault": fault,
        "family": described.family if described else "",
        **facts,
        "command": f"python -m bench run --method {name} --suite digits",
    }


def list_suites() -> list[Facts]:
    """Return the suites with every number of their protocols."""
    entries = []
    for name, suite in suites.REGISTRY.usable():
        # Rows of its own need no method.
        method = "" if suite.rows else "--method gacd "
        command = f"python -m bench run {method}--suite {name}"
        entries.append({**dataclasses.asdict(suite), "id": suite.id, "command": command})
    return entries


def list_datasets() -> list[Facts]:
    """Return the data sets."""
    entries = []
    for name, info in datasets.REGISTRY.usable():
        facts = {**dataclasses.asdict(info), "num_test": info.num_test, "source": info.source}
        entries.append({**facts, "command": f"python -m bench data fetch {name}"})
    return entries


def locate_dataset(name: str, data_root: Path) -> Facts:
    """Return where the files of a data set belong, and whether they are there and undamaged."""
    info = datasets.get(name)
    fault = damage_of(info, data_root)
    folder = str(folder_of(info, data_root)) if info.files() else None
    return {"folder": folder, "ready": not fault, "fault": fault}


def summarise_model(name: str) -> Facts:
    """Return what a network is."""
    match = models.find(name)
    return {"name": name, "family": match.family.name, "about": match.about}


def list_models() -> list[Facts]:
    """Return the examples of each family, and of those that cannot be used the fault."""
    families = (*models.builtin(), *models.plugins())
    names = sorted({example for family in families for example in family.examples})
    faults = [
        {"name": family.name, "family": family.name, "about": family.fault}
        for family in families
        if family.fault
    ]
    return [*map(summarise_model, names), *faults]


def match_model(name: str) -> list[Facts]:
    """Return the network whose name follows a pattern. Raise UsageError if it cannot be built."""
    if not models.is_name(name):
        return []
    models.check(name)
    return [summarise_model(name)]


def measure_model(name: str, data_root: Path) -> Facts:
    """Return a network's parameters, and its multiply-adds for one image, for each data set."""
    from bench.models.size import network_size

    sizes = {}
    for dataset, _ in datasets.REGISTRY.usable():
        # A network of others may be for larger images.
        with suppress(UsageError):
            sizes[dataset] = network_size(name, dataset)
    return {
        "parameters": {dataset: size.parameters for dataset, size in sizes.items()},
        "multiply_adds": {dataset: size.multiply_adds for dataset, size in sizes.items()},
    }


def list_attacks() -> list[Facts]:
    """Return the evaluation attacks with their components, whose budgets are for eps = 8/255."""
    entries = []
    for name, attack in catalog.ATTACKS.items():
        budgets = []
        for part in attack.components:
            classes = catalog.MIN_CLASSES.get(part.kind, 2)
            budgets.append({**dataclasses.asdict(part), "classes": classes})
        facts = {
            "name": name,
            "about": attack.about,
            "norms": [*attack.norms],
            "passes": attack.passes,
            "transfer": f"{name}@SURROGATE" if attack.transferable else None,
            "components": budgets,
            "command": f"python -m bench evaluate --checkpoint FILE --arch MODEL --dataset DATA "
            f"--attacks {name}",
        }
        entries.append(facts)
    return entries


def list_controls() -> list[Facts]:
    """Return the common corruptions."""
    entries = []
    for name, (kind, severity) in catalog.CONTROLS.items():
        about = f"{kind} of severity {severity} of {max(catalog.SEVERITIES)}, as in CIFAR-10-C"
        entries.append({"name": name, "about": about, "kind": kind, "severity": severity})
    return entries


def summarise_release(release: Release) -> Facts:
    """Return what a released teacher is, with its published accuracy in percent."""
    about = f"{release.arch} for {release.dataset}, AutoAttack {release.autoattack} %"
    command = f"python -m bench teacher import {release.name} FILE --dataset {release.dataset}"
    return {**dataclasses.asdict(release), "about": about, "command": command}


SECTIONS = (
    Section("methods", lambda: list(map(summarise_method, methods.names()))),
    Section("suites", list_suites),
    Section("datasets", list_datasets, details=locate_dataset),
    Section("models", list_models, match_model, measure_model),
    Section("attacks", list_attacks),
    Section("controls", list_controls),
    # One name may stand for two data sets.
    Section("teachers", lambda: list(map(summarise_release, RELEASES))),
)
TITLES = tuple(section.title for section in SECTIONS)
