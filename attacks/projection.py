"""FAB's projection onto a hyperplane inside the box [0, 1], without torchattacks' sort of every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.linalg import vecdot
from torchattacks.attacks import fab

ROUNDS = 100  # a bound only: a handful is the rule


def projection_linf(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The smallest change in l-inf that moves each point t: (B, D) of the box onto <w, t> = b, b: (B,); else the whole way.

    Moving every pixel by at most r towards the plane gains f(r) = sum |w| min(r, room), concave and piecewise linear:
    Newton's method from below finds the exact root in as many rounds as it crosses pieces.
    """
    excess = vecdot(w, points) - b
    way = w.sign() * torch.where(excess >= 0, -1, 1)[:, None]
    room = torch.addcmul(
        way.relu(), way, points, value=-1
    )  # arithmetic, because masks of pixels are slow on a CPU
    weight, need = w.abs(), excess.abs()
    reach = need / weight.sum(dim=1).clamp(min=1e-30)
    for _ in range(ROUNDS):
        gained = vecdot(weight, torch.minimum(room, reach[:, None]))
        slope = vecdot(weight, (room - reach[:, None]).relu_().sign_())
        step = torch.where(slope > 0, (need - gained) / slope.clamp(min=1e-30), 0)
        further = torch.maximum(reach, reach + step)
        if torch.equal(further, reach):
            break
        reach = further
    reach = reach.masked_fill(need >= vecdot(weight, room), torch.inf)
    return torch.minimum(room, reach[:, None]) * way


@contextmanager
def without_sort() -> Iterator[None]:
    """torchattacks' FAB uses `projection_linf` of this module."""
    original = fab.projection_linf
    fab.projection_linf = projection_linf
    try:
        yield
    finally:
        fab.projection_linf = original
