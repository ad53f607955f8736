"""The speed of training on this machine, and the share of its best rate that a step reaches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

import methods
from bench import datasets, models
from bench.execution.cost import random_batch, synchronised_time, time_loss_and_gradient
from bench.protocol.suites import Suite
from bench.system.progress import format_duration
from bench.training.memory_layout import arrange_memory, has_bf16
from bench.training.trainer import TrainingModule
from methods.base import Net

# Seconds of measuring each shape.
SECONDS_PER_SHAPE = 0.5
# Seconds of a step from which no larger batch is tried.
LONG_STEP = 1.0
# Channels and side of a ResNet-18's stages on CIFAR.
STAGE_SHAPES = ((64, 32), (128, 16), (256, 8))
CONVOLUTION_IMAGES = 64


@dataclass(frozen=True)
class Speed:
    """A training step: images a second, and its share of the best rate of convolutions."""

    images: float
    share: float


def convolution_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the best rate of forward 3x3 channels-last convolutions, in FLOP/s."""
    best = 0.0
    layout = torch.channels_last
    for channels, side in STAGE_SHAPES:
        weight = torch.randn(channels, channels, 3, 3).to(device, dtype, memory_format=layout)
        x = torch.randn(CONVOLUTION_IMAGES, channels, side, side)
        x = x.to(device, dtype, memory_format=layout)
        torch.conv2d(x, weight, padding=1)
        count = 0
        start = synchronised_time(device)
        while time.perf_counter() - start < SECONDS_PER_SHAPE:
            torch.conv2d(x, weight, padding=1)
            count += 1
        seconds = synchronised_time(device) - start
        best = max(best, count * 2 * x.numel() * channels * 9 / seconds)
    return best


def training_speed(suite: Suite, device: torch.device, peak_rate: float) -> Speed:
    """Time a step of RSLAD with the suite's first student and its robust teacher.

    Images are random, and nothing is compiled or captured. `peak_rate` is in FLOP/s.
    """
    info = datasets.get(suite.datasets[0])
    student = models.build(suite.students[0], info).to(device)
    teacher = models.build(suite.teachers["robust"].arch, info).to(device)
    operations = step_operations(student, teacher, info.shape, suite.inner_steps)
    module = TrainingModule(methods.load("rslad")(), student, {"robust": teacher}, 1).train()
    arrange_memory(module.nets, device)
    size, seconds = 0, 0.0
    while seconds < LONG_STEP and size < suite.training.batch:
        size = min(max(8 * size, 1), suite.training.batch)
        # The first step of a size may load libraries.
        batch = random_batch(suite, info.name, size, device)
        seconds = min(time_loss_and_gradient(module, batch, device) for _ in range(2))
    return Speed(size / seconds, operations * size / seconds / peak_rate)


def step_operations(student: Net, teacher: Net, shape: tuple[int, ...], steps: int) -> int:
    """Return the FLOP of RSLAD's step for one image, in convolutions and matrix products.

    A gradient for images alone costs as much as a forward pass, one for weights too twice that.
    """
    operations = []
    for net in (student, teacher):
        x = torch.rand(1, *shape, device=next(net.parameters()).device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x)
        operations.append(int(counter.get_total_flops()))
    of_student, of_teacher = operations
    # Two outer passes of the student, each with a backward pass of twice the cost.
    return of_teacher + of_student * (2 * steps + 2 * 3)


def speed_report(suites: Iterable[Suite], device: torch.device) -> Iterator[str]:
    """Return lines for people: the peak rate, then what each suite would cost."""
    peak_rate = convolution_rate(device)
    line = f"{'convolutions':14}{peak_rate / 1e9:,.0f} GFLOP/s in single precision"
    if has_bf16(device):
        bf16_rate = convolution_rate(device, torch.bfloat16)
        line += f", {bf16_rate / 1e9:,.0f} with --precision bf16"
    yield line
    for suite in suites:
        speed = training_speed(suite, device, peak_rate)
        num_train = suite.limit_train or datasets.get(suite.datasets[0]).num_train
        epoch = num_train / speed.images
        student = format_duration(epoch * suite.training.epochs)
        yield (
            f"{suite.name:14}{suite.students[0]}: {speed.images:,.3g} images a second of RSLAD, "
            f"{100 * speed.share:.0f} % of that; an epoch {format_duration(epoch)}, "
            f"training a student {student}"
        )
