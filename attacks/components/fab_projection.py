"""Projection of FAB onto a hyperplane inside the box [0, 1], without torchattacks' sort of every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.linalg import vecdot
from torchattacks.attacks import fab

# A bound only: Newton's method needs a handful.
MAX_ROUNDS = 100


def projection_linf(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Return the smallest l-inf change of each point: (B, D) to the plane <w, t> = b, b: (B,).

    Points stay in the box. If the plane is out of reach, each pixel moves to the face of the box.
    """
    excess = vecdot(w, points) - b
    direction = w.sign() * torch.where(excess >= 0, -1, 1)[:, None]
    # Arithmetic instead of a mask: comparing pixels is slow on a CPU.
    room = torch.addcmul(direction.relu(), direction, points, value=-1)
    weight, needed = w.abs(), excess.abs()
    # Moving every pixel by at most r towards the plane gains f(r) = sum |w| min(r, room). That is
    # concave and piecewise linear, so Newton's method from below reaches the exact root without
    # sorting the pixels by room, in as many rounds as it crosses pieces.
    radius = needed / weight.sum(dim=1).clamp(min=1e-30)
    for _ in range(MAX_ROUNDS):
        gained = vecdot(weight, torch.minimum(room, radius[:, None]))
        slope = vecdot(weight, (room - radius[:, None]).relu_().sign_())
        step = torch.where(slope > 0, (needed - gained) / slope.clamp(min=1e-30), 0)
        larger = torch.maximum(radius, radius + step)
        if torch.equal(larger, radius):
            break
        radius = larger
    radius = radius.masked_fill(needed >= vecdot(weight, room), torch.inf)
    return torch.minimum(room, radius[:, None]) * direction


@contextmanager
def without_sort() -> Iterator[None]:
    """Make torchattacks' FAB use `projection_linf` of this module."""
    original = fab.projection_linf
    fab.projection_linf = projection_linf
    try:
        yield
    finally:
        fab.projection_linf = original
