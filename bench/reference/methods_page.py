"""What pages say of the methods: docs/reference/methods.md, methods.json, the README's table.

`python -m bench.cli.generated_files` writes them.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any

import torch
from torch import nn

import methods
from bench.reference import about, mathml
from methods import contract
from methods.base import Budget, Method, Net

INTRO = Path(__file__).with_name("methods_intro.md")
# In Markdown a table needs no spaces, and without them the README's is short.
README_HEAD = """\
Cost: forward and backward passes of a training step, teachers' included; `pgd_at` is 1.0x.

|Method|Full name|Year|Teachers|Cost|
|---|---|---:|---|---:|
"""


def render_page() -> str:
    """Return docs/reference/methods.md: a table of the methods, then a section for each."""
    loaded = {name: methods.load(name) for name in methods.builtin()}
    rows = [table_row(name, method) for name, method in loaded.items()]
    sections = [method_section(name, method) for name, method in loaded.items()]
    return INTRO.read_text(encoding="utf-8") + "".join([*rows, *sections])


def render_readme_table() -> str:
    """Return the README's table of the methods."""
    return README_HEAD + "".join(map(readme_row, methods.builtin()))


def render_json() -> str:
    """Return methods.json, which `about.describe_method` reads."""
    entries = {}
    for name in methods.builtin():
        entries[name] = dataclasses.asdict(about.describe_class(methods.load(name)))
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def table_row(name: str, method: type[Method]) -> str:
    """Return a method's line of the page's table: names, paper, teachers and passes."""
    card, passes = about.describe_class(method), count_passes(method())
    columns = [f"[{name}](#{name})", card.full_name]
    columns.append(link(card.paper.published, card.paper.url) if card.paper else "")
    columns.append(card.family)
    columns.append(", ".join(card.teachers) or "none")
    for role in ("student", "teacher"):
        columns.append(f"{passes[role, 'forward']:g} + {passes[role, 'backward']:g}")
    return f"| {' | '.join(columns)} |\n"


def readme_row(name: str) -> str:
    """Return a method's line of the README's table: names, year, teachers and cost."""
    method = methods.load(name)
    card = about.describe_class(method)
    cost = count_passes(method()).total() / count_passes(methods.load("pgd_at")()).total()
    columns = [
        link(name, card.paper.url) if card.paper else name,
        card.full_name,
        str(card.paper.year) if card.paper else "-",
        ", ".join(card.teachers) or "none",
        f"{cost:.1f}x",
    ]
    return f"|{'|'.join(columns)}|\n"


def link(text: str, url: str) -> str:
    """Return a Markdown link, plain text without a URL."""
    return f"[{text}]({url})" if url else text


def method_section(name: str, method: type[Method]) -> str:
    """Return formula, source, hyper-parameters and what the authors' script does otherwise."""
    card = about.describe_class(method)
    parts = [f"\n## {name}\n", f"{card.title}\n"]
    if card.mathml:
        parts.append(f"```math\n{mathml.wrap_lines(cleandoc(method.formula))}\n```\n")
    parts.append(f"```text\n{card.formula}\n```\n")
    if card.paper:
        title = link(card.paper.title, card.paper.url)
        parts.append(f"Paper: {card.paper.authors}, {title}, {card.paper.published}.\n")
    if card.source:
        paragraphs = about.module_text(method)[1].split("\n\n")
        parts += ["\n\n".join(map(about.one_line, paragraphs)), ""]
    if card.parameters:
        parts.append("| Flag | Default | Searched | Meaning |\n| --- | --- | --- | --- |")
        for entry in card.parameters:
            flag = f"`--{entry.name.replace('_', '-')}`"
            parts.append(f"| {flag} | {entry.default} | {entry.searched} | {entry.meaning} |")
        parts.append("")
    if card.official:
        parts.append("With `--official`, as in the code named above:\n")
        for setting in card.official:
            instead = f" instead of {setting.default}" if setting.default else ""
            parts.append(f"- `{setting.name}`: {setting.value}{instead}: {setting.reason}")
        parts.append("")
    if method.unlike_script:
        sentences = " ".join(method.unlike_script)
        parts.append(f"What the script does otherwise also then: {sentences}\n")
    return "\n".join(parts)


@cache
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
