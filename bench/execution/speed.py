"""The speed of training on this machine, and the share of its best rate that a step reaches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

import methods
from bench import datasets, models
from bench.execution.cost import random_batch, synchronised_time, time_loss_and_gradient
from bench.protocol.suites import Suite
from bench.system.progress import format_duration
from bench.training.memory_layout import arrange_memory, has_bf16
from bench.training.trainer import TrainingModule
from methods.base import Batch, Net

SECONDS_PER_RATE = 0.5  # seconds of measuring a rate, in windows of which the best one counts
WINDOWS = 5
MOST_SECONDS = 2.0  # seconds after which a slow step is not measured again
STEPS = 4  # steps of one batch that are timed, of which the best one counts
MIN_GAIN = 1.2  # times as fast from which a precision pays
BUSY = 0.5  # running processes per core, beside this one, from which a measured rate is in doubt
PROBE_IMAGES = 4  # images of the quick probe
LONG_STEP = 1.0  # seconds of a step from which no larger batch is tried
STAGE_SHAPES = ((64, 32), (128, 16), (256, 8))  # channels and side of a ResNet-18's stages on CIFAR
CONVOLUTION_IMAGES = 64


@dataclass(frozen=True)
class SuiteSpeed:
    """The training step of a suite's first student; its share of the best rate of convolutions.

    bf16_gain: how many times as fast the step is with --precision bf16, where the device has it.
    """

    suite: str
    student: str
    images_per_second: float
    share: float
    epoch_seconds: float
    training_seconds: float
    bf16_gain: float | None

    def __str__(self) -> str:
        """Return a line for people."""
        line = (
            f"{self.suite:18}{self.student}: {self.images_per_second:,.3g} images a second of "
            f"RSLAD, {100 * self.share:.0f} % of that; "
            f"an epoch {format_duration(self.epoch_seconds)}, "
            f"training a student {format_duration(self.training_seconds)}"
        )
        if self.bf16_gain is not None:
            line += f"; with --precision bf16 {self.bf16_gain:.1f} times as fast"
        return line


def busy_warning() -> str:
    """Return a line if other processes use this machine, so that rates are too low; else ""."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load / cores < BUSY:
        return ""
    work = f"{load:.1f} running processes on {cores} cores in the last minute"
    return f"warning: the machine is busy, {work}: rates may be too low"


def best_rate(step: Callable[[], object], device: torch.device) -> float:
    """Return how often a step can be taken in a second: the best of several windows."""
    # The first step loads libraries, and other processes slow some of the rest.
    step()
    rates: list[float] = []
    deadline = time.perf_counter() + MOST_SECONDS
    while len(rates) < WINDOWS and (not rates or time.perf_counter() < deadline):
        count = 0
        start = synchronised_time(device)
        while not count or time.perf_counter() - start < SECONDS_PER_RATE / WINDOWS:
            step()
            count += 1
        rates.append(count / (synchronised_time(device) - start))
    return max(rates)


def probe_speed(arch: str, dataset: str, device: torch.device) -> float:
    """Return images a second, forward and backward through a network."""
    info = datasets.get(dataset)
    net = models.build(arch, info).to(device)
    x = torch.rand(PROBE_IMAGES, *info.shape, device=device)

    def step() -> None:
        net(x).sum().backward()

    return PROBE_IMAGES * best_rate(step, device)


def convolution_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the best rate of forward 3x3 channels-last convolutions, in FLOP/s."""
    rates = []
    layout = torch.channels_last
    for channels, side in STAGE_SHAPES:
        weight = torch.randn(channels, channels, 3, 3).to(device, dtype, memory_format=layout)
        x = torch.randn(CONVOLUTION_IMAGES, channels, side, side)
        x = x.to(device, dtype, memory_format=layout)
        operations = 2 * x.numel() * channels * 9
        rates.append(operations * best_rate(partial(torch.conv2d, x, weight, padding=1), device))
    return max(rates)


def peak_rates(device: torch.device) -> dict[str, float]:
    """Return the best rate of convolutions in FLOP/s by precision, bf16 where the device has it."""
    rates = {"fp32": convolution_rate(device)}
    if has_bf16(device):
        rates["bf16"] = convolution_rate(device, torch.bfloat16)
    return rates


def precision_advice(rates: dict[str, float]) -> str:
    """Return a line that says, from `peak_rates`, whether bf16 pays on this device."""
    if "bf16" not in rates:
        return "this device has no bf16: with --precision bf16 it trains in fp32"
    gain = rates["bf16"] / rates["fp32"]
    verdict = "pays" if gain >= MIN_GAIN else "does not pay"
    return f"--precision bf16 {verdict} here: convolutions {gain:.1f} times as fast"


def training_speed(suite: Suite, device: torch.device, peak_rate: float) -> SuiteSpeed:
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
        seconds = step_seconds(module, batch, device)
    bf16_gain = None
    if has_bf16(device):
        with torch.autocast(device.type, torch.bfloat16):
            bf16_gain = seconds / step_seconds(module, batch, device)
    images_per_second = size / seconds
    epoch_seconds = (suite.limit_train or info.num_train) / images_per_second
    return SuiteSpeed(
        suite.name,
        suite.students[0],
        images_per_second,
        operations * images_per_second / peak_rate,
        epoch_seconds,
        epoch_seconds * suite.training.epochs,
        bf16_gain,
    )


def step_seconds(module: TrainingModule, batch: Batch, device: torch.device) -> float:
    """Return the seconds of a training step, the best of several."""
    return min(time_loss_and_gradient(module, batch, device) for _ in range(STEPS))


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
