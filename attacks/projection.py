"""FAB's projection onto a hyperplane inside the box [0, 1], without torchattacks' sort of every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torchattacks.attacks import fab

ROUNDS = 100  # a bound only: a handful is the rule


def projection_linf(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The smallest change in l-inf that moves each point t: (B, D) of the box onto <w, t> = b, b: (B,); else the whole way.

    Moving every pixel by at most r towards the plane gains f(r) = sum |w| min(r, room), concave and piecewise linear:
    Newton's method from below finds the exact root in as many rounds as it crosses pieces.
    """
    excess = (w * points).sum(dim=1) - b
    up = (w < 0) == (excess >= 0)[:, None]
    room, weight, need = torch.where(up, 1 - points, points), w.abs(), excess.abs()
    reach = need / weight.sum(dim=1).clamp(min=1e-30)
    for _ in range(ROUNDS):
        moving = weight * (room > reach[:, None])
        slope, stopped = moving.sum(dim=1), ((weight - moving) * room).sum(dim=1)
        further = torch.maximum(reach, torch.where(slope > 0, (need - stopped) / slope.clamp(min=1e-30), reach))
        if torch.equal(further, reach):
            break
        reach = further
    beyond = need >= (weight * room).sum(dim=1)
    change = torch.where(beyond[:, None], room, torch.minimum(reach[:, None], room))
    return torch.where(up, change, -change) * (w != 0)


@contextmanager
def without_sort() -> Iterator[None]:
    """torchattacks' FAB uses `projection_linf` of this module."""
    original = fab.projection_linf
    fab.projection_linf = projection_linf
    try:
        yield
    finally:
        fab.projection_linf = original
