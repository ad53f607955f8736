"""What training costs on this machine: how fast it convolves at best, and how near a step of distillation comes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

import methods
from bench import datasets, models
from bench.execution import cost
from bench.protocol.suites import Suite
from bench.system.progress import format_duration
from bench.training import acceleration
from bench.training.trainer import TrainingModule
from methods.base import Batch, Budget, Net

SECONDS = 0.5  # of measuring each shape
ENOUGH = 1.0  # seconds of a step from which on no larger batch is tried
SHAPES = ((64, 32), (128, 16), (256, 8))  # channels and side of a ResNet-18's stages on CIFAR


@dataclass(frozen=True)
class Speed:
    """A training step: images a second, and its share of the machine's best rate of convolutions."""

    images: float
    share: float


def convolutions(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """The best rate of 3x3 convolutions, channels-last, forward: FLOP/s."""
    best = 0.0
    for channels, side in SHAPES:
        shapes = (channels, channels, 3, 3), (64, channels, side, side)
        weight, x = (
            torch.randn(shape).to(device, dtype, memory_format=torch.channels_last)
            for shape in shapes
        )
        torch.conv2d(x, weight, padding=1)
        count, start = 0, cost.clock(device)
        while time.perf_counter() - start < SECONDS:
            torch.conv2d(x, weight, padding=1)
            count += 1
        seconds = cost.clock(device) - start
        best = max(best, count * 2 * x.numel() * channels * 9 / seconds)
    return best


def step(suite: Suite, device: torch.device, ceiling: float) -> Speed:
    """Times RSLAD's step with the suite's first student and robust teacher on random images, not compiled nor captured."""
    info = datasets.get(suite.datasets[0])
    student = models.build(suite.students[0], info).to(device)
    teacher = models.build(suite.teachers["robust"].arch, info).to(device)
    flops = operations(student, teacher, info.shape, suite.inner_steps)
    objective = TrainingModule(methods.load("rslad")(), student, {"robust": teacher}, 1).train()
    acceleration.prepare(objective.nets, device)
    size, seconds = 0, 0.0
    while seconds < ENOUGH and size < suite.training.batch:
        size = min(8 * size or 1, suite.training.batch)
        seconds = min(
            once(objective, suite, size, device) for _ in range(2)
        )  # the first may load libraries
    return Speed(size / seconds, flops * size / seconds / ceiling)


def operations(student: Net, teacher: Net, shape: tuple[int, ...], steps: int) -> int:
    """FLOP of RSLAD's step for one image, in convolutions and products; a gradient for images alone is a forward pass."""
    found = []
    for net in (student, teacher):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.rand(1, *shape, device=next(net.parameters()).device))
        found.append(int(counter.get_total_flops()))
    return found[1] + found[0] * (2 * steps + 2 * 3)


def once(objective: TrainingModule, suite: Suite, size: int, device: torch.device) -> float:
    """Seconds of a loss and its gradient."""
    info = datasets.get(suite.datasets[0])
    x, y = (
        torch.rand(size, *info.shape, device=device),
        torch.zeros(size, dtype=torch.long, device=device),
    )
    budget = Budget(suite.eps, suite.inner_step, suite.inner_steps)
    batch = Batch(x, y, torch.arange(size, device=device), 0, 1, size, budget)
    start = cost.clock(device)
    terms = objective(batch, objective.attack(batch))
    torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    return cost.clock(device) - start


def lines(suites: Iterable[Suite], device: torch.device) -> Iterator[str]:
    """For people: the ceiling, then what each suite would cost."""
    ceiling = convolutions(device)
    said = f"{'convolutions':14}{ceiling / 1e9:,.0f} GFLOP/s in single precision"
    if acceleration.has_bf16(device):
        said += f", {convolutions(device, torch.bfloat16) / 1e9:,.0f} with --precision bf16"
    yield said
    for suite in suites:
        found, images = (
            step(suite, device, ceiling),
            suite.limit_train or datasets.get(suite.datasets[0]).num_train,
        )
        epoch = images / found.images
        yield (
            f"{suite.name:14}{suite.students[0]}: {found.images:,.3g} images a second of RSLAD, {100 * found.share:.0f} % "
            f"of that; an epoch {format_duration(epoch)}, training a student {format_duration(epoch * suite.training.epochs)}"
        )
