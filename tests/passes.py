"""A network with BatchNorm in double precision, and what its statistics become in NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from formulas import LABELS, SOME, Array, Normed, linear
from torch import Tensor, nn

from methods.base import Batch, Budget, Method, Net, Nets

MOMENTUM = 0.1


def normed_nets(case: Method) -> Nets:
    """Build the networks that `case` reads and its parts, always with the same weights."""
    torch.manual_seed(0)
    student = Normed(5, 3, MOMENTUM).double()
    teachers: dict[str, Net] = {
        role: Normed(7, 3, MOMENTUM).double() for role in case.teacher_roles
    }
    parts = nn.ModuleDict(case.build(student, teachers, 64)).double()
    for teacher in teachers.values():
        teacher.eval().requires_grad_(False)
    return Nets(student, teachers, parts)


def normed_batch(budget: Budget = SOME) -> Batch:
    """Return images of a batch, of which some pixels are 0 or 1."""
    random = torch.Generator().manual_seed(0)
    x = 1.2 * torch.rand(len(LABELS), 3, 2, 2, generator=random, dtype=torch.float64) - 0.1
    x, y = x.clamp(0, 1), torch.tensor(LABELS)
    return Batch(x, y, torch.arange(len(y)), epoch=1, epochs=2, num_train=64, budget=budget)


@dataclasses.dataclass
class Statistics:
    """BatchNorm's running mean and variance, (width,) each, and how a pass moves them."""

    mean: Array
    var: Array

    def see(self, net: nn.Module, images: Tensor) -> Statistics:
        """Return them after a pass in train mode."""
        pixels = 2 * images.detach().numpy().reshape(len(images), -1) - 1
        z = linear(net.get_submodule("first"), pixels)
        keep = 1 - MOMENTUM
        return Statistics(
            keep * self.mean + MOMENTUM * z.mean(axis=0),
            keep * self.var + MOMENTUM * z.var(axis=0, ddof=1),
        )


def statistics_after(net: nn.Module, *passes: Tensor) -> Statistics:
    """Return those of a new network after passes in this order."""
    width = len(net.get_buffer("norm.running_mean"))
    statistics = Statistics(np.zeros(width), np.ones(width))
    for images in passes:
        statistics = statistics.see(net, images)
    return statistics


def statistics_of(net: nn.Module) -> Statistics:
    mean, var = (net.get_buffer(f"norm.running_{name}").numpy() for name in ("mean", "var"))
    return Statistics(mean.copy(), var.copy())


def assert_seen(net: nn.Module, *passes: Tensor) -> None:
    """Assert that a network's statistics are those of these passes, to rounding."""
    actual, expected = statistics_of(net), statistics_after(net, *passes)
    np.testing.assert_allclose(actual.mean, expected.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(actual.var, expected.var, rtol=1e-12, atol=1e-12)
