"""How much faster a training step is than the authors' way of writing it, at the same mathematics.

    pytest tests/bench_training.py [--benchmark-json FILE]

Not collected with the tests. A case times the two alternately, so that a busy machine slows both; the ratio is that of the
medians. The reference is tests/reference.py.
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from reference import BUDGET
from torch import Tensor

from bench import data, models
from bench.spec import Spec
from bench.suites import Training
from bench.train import Objective, Trainer
from methods.base import Net
from methods.rslad import Rslad

pytestmark = pytest.mark.timeout(3600)
CASES = {  # student and teacher, batch, rounds, ratio to reach
    "resnet8-w4, digits": ("digits", "resnet8-w4", "resnet8-w16", 64, 21, None),
    "resnet8-w16-s2, cifar-mini": ("cifar10", "resnet8-w16-s2", "resnet14-w16-s2", 128, 11, None),
    "ResNet-18 of width 16": ("cifar10", "resnet18-w16", "resnet18-w16", 64, 5, 1.4),
    "ResNet-18 of width 64": ("cifar10", "resnet18", "resnet18", 32, 3, 1.2),
}


def harness(dataset: str, arch: str, teacher: Net, batch: int, work: Path) -> Trainer:
    training = Training(epochs=1, batch=batch, averaging=())
    spec = Spec(suite="bench@1", role="student", dataset=dataset, arch=arch, method="rslad", hyper={}, teachers={},
                seed=0, training=training, eps=BUDGET.eps, inner_step=BUDGET.step, inner_steps=BUDGET.steps,
                attacks=(), full_checkpoints=(), precision="fp32")  # fmt: skip
    found = data.load(dataset, "data", limit_train=2 * batch + 20, limit_val=10, limit_test=10)
    torch.manual_seed(0)
    return Trainer(Objective(Rslad(), models.build(arch, found.info), {"robust": teacher}, 100), found, spec, work)


@pytest.mark.parametrize("name", CASES)
def test_step_of_rslad(name: str, benchmark: Any, tmp_path: Path) -> None:
    dataset, arch, taught_by, batch, rounds, least = CASES[name]
    if data.missing(dataset, "data"):
        pytest.skip(f"needs the real {dataset} under data/")
    torch.manual_seed(1)
    teacher = models.build(taught_by, data.load(dataset, "data", limit_train=100, limit_val=10, limit_test=10).info)
    trainer = harness(dataset, arch, copy.deepcopy(teacher), batch, tmp_path)
    student = copy.deepcopy(trainer.objective.student)
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    teacher.eval().requires_grad_(False)
    images = trainer.batch(trainer.order()[0], 0)
    trainer.set_rate(0)
    times: dict[str, list[float]] = {"reference": [], "harness": []}
    torch.manual_seed(0)
    expected = trainer.objective.attack(replace(images))
    for number in range(rounds + 1):  # the first is a warm-up, and shows that both do the same
        one = replace(images)
        torch.manual_seed(number)
        start = time.perf_counter()
        adv, loss = reference.step(student, teacher, optimiser, one.x)
        middle = time.perf_counter()
        torch.manual_seed(number)
        terms = trainer.step(one)
        times["reference"].append(middle - start)
        times["harness"].append(time.perf_counter() - middle)
        if number == 0:
            same(adv, expected, loss, sum(terms.values()))
    slow, fast = (statistics.median(values[1:]) for values in times.values())
    ratios = sorted(a / b for a, b in zip(*(values[1:] for values in times.values()), strict=True))
    benchmark.pedantic(trainer.step, (replace(images),), rounds=1)
    benchmark.extra_info |= {"reference_seconds": slow, "harness_seconds": fast, "ratio": slow / fast}
    print(f"\n{name}: {slow:.3f} s / {fast:.3f} s = {slow / fast:.2f} (each pair {ratios[0]:.2f} to {ratios[-1]:.2f})")
    assert least is None or slow / fast >= least


def same(adv: Tensor, expected: Tensor, loss: Tensor, other: Tensor) -> None:
    """The images but for signs of gradients that rounding turns (none in double precision: test_fold.py), and the loss."""
    turned = (adv - expected).abs() > 1e-6
    print(f"\n{turned.float().mean():.2e} of the pixels differ, losses by {abs(other / loss - 1):.1e}")
    assert turned.float().mean() < 0.01
    torch.testing.assert_close(other, loss, rtol=1e-3, atol=0)
