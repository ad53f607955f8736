"""Write docs/methods.md and methods.json from the methods themselves.

python -m bench.reference.methods_page
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench.reference import about
from methods import contract
from methods.base import Budget, Method, Net

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
INTRO = Path(__file__).with_name("methods_intro.md")


def write_files() -> None:
    """Write the page and methods.json."""
    PAGE.write_text(render_page(), encoding="utf-8")
    about.FILE.write_text(about.render_file(), encoding="utf-8")


def render_page() -> str:
    """Return the page: a table of the methods, then a section for each."""
    rows = []
    sections = []
    for name in methods.builtin():
        method = methods.load(name)
        rows.append(table_row(name, method))
        sections.append(method_section(name, method))
    return INTRO.read_text(encoding="utf-8") + "".join([*rows, *sections])


def table_row(name: str, method: type[Method]) -> str:
    """Return a method's line of the table: teachers, passes and what `--official` sets."""
    case = method()
    passes = count_passes(case)
    columns = [f"[{name}](#{name})", ", ".join(case.requires) or "none"]
    for role in ("student", "teacher"):
        columns.append(f"{passes[role, 'forward']:g} + {passes[role, 'backward']:g}")
    names = [field.name for field in dataclasses.fields(method) if is_official(field)]
    names += [setting for setting, _, _ in method.recipe]
    columns.append(", ".join(f"`{name}`" for name in names))
    return f"| {' | '.join(columns)} |\n"


def method_section(name: str, method: type[Method]) -> str:
    """Return formula, source, hyper-parameters and what the authors' script does otherwise."""
    title, source = about.module_text(method)
    formula = inspect.cleandoc(method.__doc__ or "")
    parts = [f"\n## {name}\n", f"{about.one_line(title)}\n", f"```text\n{formula}\n```\n"]
    if source:
        paragraphs = [about.one_line(paragraph) for paragraph in source.split("\n\n")]
        parts += ["\n\n".join(paragraphs), ""]
    rows = list(parameter_rows(method))
    if rows:
        header = "| Flag | Default | Searched | Meaning |\n| --- | --- | --- | --- |"
        parts += [header, *rows, ""]
    differences = list(official_lines(method))
    if differences:
        parts += ["The authors' script, with `--official`:\n", *differences, ""]
    return "\n".join(parts)


def parameter_rows(method: type[Method]) -> Iterator[str]:
    """Return the lines of the table of hyper-parameters."""
    for parameter in about.describe_class(method).parameters:
        flag = parameter.name.replace("_", "-")
        columns = (f"`--{flag}`", parameter.default, parameter.searched, parameter.meaning)
        yield f"| {' | '.join(columns)} |"


def official_lines(method: type[Method]) -> Iterator[str]:
    """Return what `--official` sets, a line each."""
    for field in dataclasses.fields(method):
        if is_official(field):
            value = f"{field.metadata['official']} instead of {field.default}"
            yield f"- `{field.name}`: {value}: {field.metadata['help']}"
    for setting, value, reason in method.recipe:
        yield f"- `{setting}`: {value}: {reason}"


def is_official(field: dataclasses.Field[Any]) -> bool:
    """Whether the authors' script has another value than the default."""
    return field.metadata.get("official") is not None


def count_passes(case: Method) -> Counter[tuple[str, str]]:
    """Count the images that pass student and teachers for each image of a batch.

    It is a step in the last epoch of a training, with an inner attack of 10 steps.

    Returns:
        (student or teacher, forward or backward) -> passes.
    """
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
    write_files()
