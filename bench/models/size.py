"""The size of a network: its parameters, and the arithmetic that one image costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import datasets
from bench.models import outline
from leaderboards.schema import metrics


@dataclass(frozen=True)
class Size:
    """Trainable parameters, and the multiply-adds of a forward pass of one image.

    multiply_adds: of convolutions and matrix products; normalisation and activations do not count.
    """

    parameters: int
    multiply_adds: int


@cache
def network_size(arch: str, dataset: str) -> Size:
    """Count without computing. Raise UsageError for an unknown network or data set."""
    info = datasets.get(dataset)
    # Without storage: the largest has a billion bytes.
    net = outline(arch, info).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *info.shape, device=net.mean.device))
    parameters = sum(value.numel() for value in net.parameters())
    return Size(parameters, counter.get_total_flops() // 2)


def size_metrics(arch: str, teacher: str, dataset: str) -> dict[str, float]:
    """Return the sizes of a student and of its teacher, "" for none, by the names of metrics."""
    student = network_size(arch, dataset)
    sizes = {metrics.PARAMETERS: student.parameters, metrics.MULTIPLY_ADDS: student.multiply_adds}
    if teacher:
        size = network_size(teacher, dataset)
        sizes[metrics.TEACHER_PARAMETERS] = size.parameters
        sizes[metrics.TEACHER_MULTIPLY_ADDS] = size.multiply_adds
    return {name: float(value) for name, value in sizes.items()}
