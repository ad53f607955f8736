"""Every method over four steps, against its formula written a second time and against numbers.

The numbers of tests/data/script_steps.json are those of tests/script_steps.py, not of `methods`:
`python tests/test_script_steps.py` writes them. They change with any sign, order or constant.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import script_steps
import torch
from formulas import Normed
from script_steps import (
    ALL_EPOCHS,
    EPOCHS,
    EPS,
    LR,
    MOMENTUM,
    STEP,
    STEPS,
    WEIGHT_DECAY,
    Run,
)
from torch import Tensor, nn

import methods
from methods.base import Batch, Budget, Method, Net, Nets, official_values

FILE = Path(__file__).parent / "data" / "script_steps.json"
METHODS = methods.builtin()
TOLERANCE = 1e-9
NUM_TRAIN = 40
# Switches beside the default and `--official`, of what moves.
OTHERS: dict[str, dict[str, Any]] = {
    "crd": {"bank": 12},
    "crd_adv": {"bank": 12, "estimator": "infonce"},
    "gacd": {"bank": 12},
    "fitnet": {"inputs": "adv"},
    "kdiga": {"inputs": "adv", "train_mode_attack": True, "script_passes": True},
    "adaad": {"alpha": 0.5, "extra_forward": True},
    "absld": {"class_sums": True},
    "saad": {"beta": 0.2},
}
Numbers = list[dict[str, float]]


def variants(name: str) -> dict[str, Method]:
    """Return a method as it is, as `--official` sets it, and with other switches."""
    method = methods.load(name)
    cases = {"default": method()}
    if values := official_values(method):
        cases["official"] = method(**values)
    if name in OTHERS:
        cases["other"] = method(**OTHERS[name])
    return cases


CASES = {
    f"{name} {variant} {classes}": (case, classes)
    for name in METHODS
    for variant, case in variants(name).items()
    # With many classes most never occur, with three the batch is unbalanced.
    for classes in (3, 100)
}


def build(case: Method, classes: int) -> Nets:
    """Return student, teachers and parts, the same for each call."""
    torch.manual_seed(1)
    student = Normed(5, classes).double()
    teachers: dict[str, Net] = {role: Normed(7, classes).double() for role in ("robust", "natural")}
    # Statistics as after some training.
    for net in (student, *teachers.values()):
        with torch.no_grad():
            net(torch.rand(30, 3, 2, 2, dtype=torch.float64))
    teachers = {role: teachers[role] for role in case.teacher_roles}
    parts = nn.ModuleDict(case.build(student, teachers, NUM_TRAIN)).double()
    for teacher in teachers.values():
        teacher.eval().requires_grad_(False)
    return Nets(student, teachers, parts)


def batches(classes: int) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield epoch, images, labels and positions of each step. Some pixels are 0 or 1."""
    generator = torch.Generator().manual_seed(2)
    for epoch in EPOCHS:
        x = 1.4 * torch.rand(8, 3, 2, 2, generator=generator, dtype=torch.float64) - 0.2
        y = torch.tensor([0, 1, 2, 2, 2, 1, 2, min(classes - 1, 77)])
        yield epoch, x.clamp(0, 1), y, torch.randperm(NUM_TRAIN, generator=generator)[: len(y)]


def measure(adv: Tensor, terms: dict[str, Tensor], student: nn.Module) -> dict[str, float]:
    """Return what is compared after a step: its terms, sums over everything else."""
    numbers = {f"term {name}": term.item() for name, term in terms.items()}
    slopes = [value.grad for value in student.parameters() if value.grad is not None]
    numbers["gradient norm"] = torch.cat([slope.flatten() for slope in slopes]).norm().item()
    numbers["gradient"] = checksum(*slopes)
    numbers["images"] = checksum(adv)
    numbers["weights"] = checksum(*student.parameters())
    numbers["statistics"] = checksum(*student.buffers())
    return numbers


@torch.no_grad()
def checksum(*tensors: Tensor) -> float:
    """Return a weighted sum, in which no two places count alike."""
    values = torch.cat([tensor.double().flatten() for tensor in tensors])
    return (values * torch.arange(1, len(values) + 1).double().sqrt().cos()).sum().item()


def method_numbers(case: Method, classes: int, clamp_start: bool) -> Numbers:
    """Return the numbers of a method's own steps."""
    nets = build(case, classes)
    budget = Budget(EPS, STEP, STEPS, clamp_start=clamp_start)
    groups = case.param_groups(nets)
    optimiser = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for group in optimiser.param_groups:
        group["lr"] = LR * group.get("scale", 1.0)
    numbers = []
    nets.student.train()
    nets.parts.train()
    for step, (epoch, x, y, index) in enumerate(batches(classes)):
        torch.manual_seed(step)
        batch = Batch(x, y, index, epoch, ALL_EPOCHS, NUM_TRAIN, budget)
        adv = case.attack(nets, batch)
        optimiser.zero_grad()
        terms = case.loss(nets, batch, adv)
        sum(terms.values()).backward()  # type: ignore[union-attr]
        optimiser.step()
        case.after_step(nets, batch)
        numbers.append(measure(adv, terms, nets.student))
    return numbers


def formula_numbers(case: Method, classes: int, clamp_start: bool) -> Numbers:
    """Return the numbers of the formula's steps."""
    nets = build(case, classes)
    values = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    if "base" in values:
        base = methods.load(values["base"])()
        values["base_values"] = script_steps.namespace(dataclasses.asdict(base))
    run = Run(
        script_steps.namespace(values), nets.student, nets.teachers, dict(nets.parts), clamp_start
    )
    descent = script_steps.Descent(script_steps.groups_of(run))
    numbers = []
    nets.student.train()
    nets.parts.train()
    run.classes = classes
    for step, (run.epoch, run.x, run.y, run.index) in enumerate(batches(classes)):
        torch.manual_seed(step)
        adv, terms = script_steps.STEPS_OF[name_of(case)](run)
        descent.step(sum(terms.values()))  # type: ignore[arg-type]
        numbers.append(measure(adv, terms, nets.student))
    return numbers


def name_of(case: Method) -> str:
    return type(case).__module__.rpartition(".")[2]


def clamps(label: str) -> bool:
    """`--official` lets attacks begin outside [0, 1]."""
    return " official " not in label


def assert_close(actual: Numbers, expected: Numbers) -> None:
    for step, (left, right) in enumerate(zip(actual, expected, strict=True)):
        assert left.keys() == right.keys()
        for name, value in right.items():
            assert left[name] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), (step, name)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Numbers]:
    numbers: dict[str, Numbers] = json.loads(FILE.read_text())
    return numbers


def test_every_method_has_numbers(recorded: dict[str, Numbers]) -> None:
    assert script_steps.STEPS_OF.keys() == set(METHODS)
    assert recorded.keys() == CASES.keys()


@pytest.mark.parametrize("label", CASES)
def test_a_method_makes_the_steps_of_its_formula(label: str, recorded: dict[str, Numbers]) -> None:
    case, classes = CASES[label]
    assert_close(method_numbers(case, classes, clamps(label)), recorded[label])


@pytest.mark.parametrize("label", CASES)
def test_the_numbers_are_those_of_the_formulas(label: str, recorded: dict[str, Numbers]) -> None:
    case, classes = CASES[label]
    assert_close(formula_numbers(case, classes, clamps(label)), recorded[label])


def main() -> None:
    """Write the numbers of all formulas."""
    everything = {
        label: formula_numbers(case, classes, clamps(label))
        for label, (case, classes) in CASES.items()
    }
    FILE.write_text(json.dumps(everything, indent=0) + "\n")


if __name__ == "__main__":
    main()
