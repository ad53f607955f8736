"""Write docs/reference/methods.md and methods.json from the methods themselves.

python -m bench.reference.methods_page
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench.reference import about
from methods import contract
from methods.base import Budget, Method, Net

# Of the clone in whose folder the command runs: an installed package has no docs beside it.
PAGE = Path("docs", "reference", "methods.md")
INTRO = Path(__file__).with_name("methods_intro.md")


def render_page() -> str:
    """Return docs/reference/methods.md: a table of the methods, then a section for each."""
    loaded = {name: methods.load(name) for name in methods.builtin()}
    rows = [table_row(name, method) for name, method in loaded.items()]
    sections = [method_section(name, method) for name, method in loaded.items()]
    return INTRO.read_text(encoding="utf-8") + "".join([*rows, *sections])


def render_json() -> str:
    """Return methods.json, which `about.describe_method` reads."""
    entries = {}
    for name in methods.builtin():
        entries[name] = dataclasses.asdict(about.describe_class(methods.load(name)))
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def table_row(name: str, method: type[Method]) -> str:
    """Return a method's line of the table: teachers, passes and what `--official` sets."""
    case = method()
    passes = count_passes(case)
    columns = [f"[{name}](#{name})", ", ".join(case.teacher_roles) or "none"]
    for role in ("student", "teacher"):
        columns.append(f"{passes[role, 'forward']:g} + {passes[role, 'backward']:g}")
    names = [field.name for field in official_fields(method)]
    names += [setting for setting, _, _ in method.recipe]
    columns.append(", ".join(f"`{name}`" for name in names))
    return f"| {' | '.join(columns)} |\n"


def method_section(name: str, method: type[Method]) -> str:
    """Return formula, source, hyper-parameters and what the authors' script does otherwise."""
    text = about.describe_class(method)
    parts = [f"\n## {name}\n", f"{text.title}\n", f"```text\n{text.formula}\n```\n"]
    if text.source:
        paragraphs = about.module_text(method)[1].split("\n\n")
        parts += ["\n\n".join(map(about.one_line, paragraphs)), ""]
    if text.parameters:
        parts.append("| Flag | Default | Searched | Meaning |\n| --- | --- | --- | --- |")
        for entry in text.parameters:
            flag = f"`--{entry.name.replace('_', '-')}`"
            parts.append(f"| {flag} | {entry.default} | {entry.searched} | {entry.meaning} |")
        parts.append("")
    differences = []
    for field in official_fields(method):
        value = f"{field.metadata['official']} instead of {field.default}"
        differences.append(f"- `{field.name}`: {value}: {field.metadata['help']}")
    for setting, value, reason in method.recipe:
        differences.append(f"- `{setting}`: {value}: {reason}")
    if differences:
        parts += ["The authors' script, with `--official`:\n", *differences, ""]
    return "\n".join(parts)


def official_fields(method: type[Method]) -> list[dataclasses.Field[Any]]:
    """Return the fields that have another value in the authors' script than their default."""
    fields = dataclasses.fields(method)
    return [field for field in fields if field.metadata.get("official") is not None]


def count_passes(case: Method) -> Counter[tuple[str, str]]:
    """Count the passes, forward and backward, that a training step takes for each image."""
    # Some methods begin gently: the step is one of the last epoch.
    nets = contract.networks(case)
    batch = contract.every_epoch(contract.images([0, 1, 2, 0]))[-1]
    count: Counter[tuple[str, str]] = Counter()
    parts = [part for part in nets.parts.values() if isinstance(part, Net)]
    count_images(nets.student, "student", count)
    for net in [*nets.teachers.values(), *parts]:
        count_images(net, "teacher", count)
    contract.train(case, nets, [dataclasses.replace(batch, budget=Budget(0.1, 0.05, 10))])
    return Counter({key: images / len(batch.y) for key, images in count.items()})


def count_images(net: nn.Module, role: str, count: Counter[tuple[str, str]]) -> None:
    """Add to `count` the images that go through the first layers of a network from now on."""

    def count_backward(gradient: torch.Tensor) -> None:
        count[role, "backward"] += len(gradient)

    def count_forward(_: nn.Module, __: Any, maps: torch.Tensor) -> None:
        count[role, "forward"] += len(maps)
        if maps.requires_grad:
            maps.register_hook(count_backward)  # type: ignore[no-untyped-call]

    net.get_submodule("trunk").register_forward_hook(count_forward)


if __name__ == "__main__":
    if not PAGE.exists():
        raise SystemExit(f"no {PAGE} here: run this in the folder of a clone")
    PAGE.write_text(render_page(), encoding="utf-8")
    about.FILE.write_text(render_json(), encoding="utf-8")
