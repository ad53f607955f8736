"""docs/methods.md, made from the methods themselves: `python -m bench.reference.methods_page > docs/methods.md`."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections import Counter
from dataclasses import Field
from typing import Any

import torch
from torch import nn

import methods
from methods import contract
from methods.base import Budget, Method, Net

INTRO = """# Methods

Made from `methods/*.py` by `python -m bench.reference.methods_page > docs/methods.md`; a test compares the two.

S is the student, T the robust teacher, N the natural one; x are clean images, y labels, x~ the adversarial images of the
inner problem. KL(P || Q) has its target first, softmax implied, and is summed over classes and averaged over the batch.
The default of each method is its paper's loss under the protocol that all share: attack budget, schedule, weight decay,
averaging and checkpoint rule are the suite's. `--official` sets what the authors' script does otherwise, as listed; the
threat model and the choice of the checkpoint stay the suite's (the scripts choose it on the test set). Any method takes
`--awp X` (adversarial weight perturbation, Wu et al., NeurIPS 2020).

Passes are those of one training step, forward + backward per image, with an inner attack of 10 steps, counted on a small
network; a step of the attack is one of each. A peer, or a teacher that learns, counts as a teacher.

| Method | Teachers | Student passes | Teacher passes | `--official` |
| --- | --- | ---: | ---: | --- |
"""


def render() -> str:
    """The page."""
    loaded = {name: methods.load(name) for name in methods.builtin()}
    rows = "".join(f"{row(name, form)}\n" for name, form in loaded.items())
    return INTRO + rows + "".join(section(name, form) for name, form in loaded.items())


def row(name: str, form: type[Method]) -> str:
    """A line of the table."""
    case, count = form(), passes(form())
    student, teacher = (
        f"{count[who, 'forward']:g} + {count[who, 'backward']:g}" for who in ("student", "teacher")
    )
    odd = [f"`{field.name}`" for field in dataclasses.fields(form) if official(field) is not None]
    odd += [f"`{field}`" for field, _, _ in form.recipe]
    return f"| [{name}](#{name}) | {', '.join(case.teacher_roles) or 'none'} | {student} | {teacher} | {', '.join(odd)} |"


def section(name: str, form: type[Method]) -> str:
    """Formula, source, hyper-parameters and what the authors' script does otherwise."""
    module = sys.modules[form.__module__].__doc__ or ""
    title, _, about = module.strip().partition("\n\n")
    parts = [f"\n## {name}\n", f"{one_line(title)}\n", fenced(inspect.cleandoc(form.__doc__ or ""))]
    parts += [f"{one_line(about)}\n"] if about else []
    tuned = [field for field in dataclasses.fields(form) if not is_quirk(field)]
    if tuned:
        parts.append("| Flag | Default | Searched | Meaning |\n| --- | --- | --- | --- |")
        parts += [
            f"| `--{flag(field)}` | {field.default} | {searched(field)} | {field.metadata['help']} |"
            for field in tuned
        ]
        parts.append("")
    odd = [f"- `{field.name}`: {official(field)} instead of {field.default}: {field.metadata['help']}"
           for field in dataclasses.fields(form) if official(field) is not None]  # fmt: skip
    odd += [f"- `{field}`: {value}: {why}" for field, value, why in form.recipe]
    if odd:
        parts += ["The authors' script, with `--official`:\n", *odd, ""]
    return "\n".join(parts)


def passes(case: Method) -> Counter[tuple[str, str]]:
    """How many images go through student and teachers for each of the batch, in the last epoch of a training."""
    nets, batch = contract.networks(case), contract.every_epoch(contract.images([0, 1, 2, 0]))[-1]
    count: Counter[tuple[str, str]] = Counter()
    watch(nets.student, "student", count)
    for net in [
        *nets.teachers.values(),
        *(part for part in nets.parts.values() if isinstance(part, Net)),
    ]:
        watch(net, "teacher", count)
    full = dataclasses.replace(batch, budget=Budget(0.1, 0.05, 10))
    contract.train(case, nets, [full])
    return Counter({key: value / len(batch.y) for key, value in count.items()})


def watch(net: nn.Module, who: str, count: Counter[tuple[str, str]]) -> None:
    """Adds to `count` what goes through the first layers of `net`."""

    def forward(_: nn.Module, __: Any, maps: torch.Tensor) -> None:
        count[who, "forward"] += len(maps)
        if maps.requires_grad:
            maps.register_hook(lambda gradient: count.update({(who, "backward"): len(gradient)}))  # type: ignore[no-untyped-call]

    net.get_submodule("trunk").register_forward_hook(forward)


def official(field: Field[Any]) -> Any:
    """The value in the authors' script; None where it is the default."""
    return field.metadata.get("official")


def is_quirk(field: Field[Any]) -> bool:
    """Whether the field only switches to what the authors' script does, as `methods.base.quirk` declares."""
    return bool(field.metadata["quirk"])


def flag(field: Field[Any]) -> str:
    return field.name.replace("_", "-")


def searched(field: Field[Any]) -> str:
    """The search range in words."""
    search = field.metadata["search"]
    if search["choices"]:
        return ", ".join(map(str, search["choices"]))
    if search["low"] is None:
        return "on, off" if isinstance(field.default, bool) else "not"
    return f"{search['low']:g} to {search['high']:g}{', logarithmic' if search['log'] else ''}"


def one_line(text: str) -> str:
    """Paragraphs of one line each."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def fenced(text: str) -> str:
    return f"```text\n{text}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(render())
