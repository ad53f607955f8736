"""FAB of torchattacks without a sort of every pixel, with early exit and several targets in a pass.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
ICML 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchattacks
from torch import Tensor
from torch.linalg import vecdot
from torch.nn.functional import pad
from torchattacks.attacks import fab

from attacks.attacked_model import perturbation_norm

# Of the official code: how far a step goes past the plane, how much of a step may pull back to the
# image, and the share of the way from the image at which a fooling point goes on.
OVERSHOOT, LARGEST_PULL, BACK_STEP = 1.05, 0.1, 0.9
# A bound only: Newton's method needs a handful.
MAX_ROUNDS = 100
# Further than any pixel goes.
FAR = 1e12

# Of points (B, D) to the planes <w, t> = b: w (B, D), b (B,) -> the change of each point (B, D).
Projection = Callable[[Tensor, Tensor, Tensor], Tensor]


class FAB(torchattacks.FAB):  # type: ignore[misc]
    """FAB towards the nearest class; an image is dropped once an iterate in the ball fools."""

    def attack_single_run(self, x: Tensor, y: Tensor, use_rand_start: bool = False) -> Tensor:
        adv = x
        with without_sort(), self.model.early_exit(x, y, self.eps, self.norm) as early:
            adv = super().attack_single_run(x, y, use_rand_start)
        merged: Tensor = early.merge(adv)
        return merged


class FABT(torchattacks.FAB):  # type: ignore[misc]
    """FAB towards the second to the tenth class of the clean prediction.

    A pass takes up to `batch_size` pairs of an image and a target. Once an iterate in the ball
    fools, all pairs of its image are dropped.
    """

    def __init__(self, model: Any, batch_size: int, **options: Any) -> None:
        super().__init__(model, **options, multi_targeted=True)
        self.batch_size = batch_size
        self.project = projection_linf if self.norm == "Linf" else projection_l2

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """Replace each fooled image of x: (B, C, H, W) by its adversarial example."""
        adv, rows = x.clone(), torch.arange(len(x), device=x.device)
        with torch.no_grad():
            targets = self.get_logits(x).argsort(dim=1).flip(1)[:, 1 : self.n_target_classes + 1]
        # Nothing is random and no target depends on another, so their order changes no verdict.
        while len(rows) and targets.shape[1]:
            count = min(max(self.batch_size // len(rows), 1), targets.shape[1])
            source, target = rows.repeat_interleave(count), targets[rows, :count].flatten()
            self._descend(x[source], y[source], target, source, adv)
            unchanged = perturbation_norm(adv[rows] - x[rows], self.norm) == 0
            rows, targets = rows[unchanged], targets[:, count:]
        return adv

    def _descend(self, x: Tensor, y: Tensor, target: Tensor, source: Tensor, adv: Tensor) -> None:
        """Attack pairs of x: (R, C, H, W) and target: (R,); stores the result in adv[source]."""
        point = x
        for _ in range(self.steps):
            point = self._step(point, x, y, target)
            with torch.no_grad():
                wrong = self.get_logits(point).argmax(dim=1) != y
                fooled = self.model.confirm_fooled(point, x, y, wrong, self.eps, self.norm)
            if len(fooled):
                adv[source[fooled]] = point[fooled]
                kept = torch.isin(source, source[fooled], invert=True)
                point, x, y, wrong = point[kept], x[kept], y[kept], wrong[kept]
                target, source = target[kept], source[kept]
                if not len(source):
                    return
            fraction = torch.where(wrong, BACK_STEP, 1.0).view(-1, 1, 1, 1)
            point = torch.lerp(x, point, fraction)

    def _step(self, point: Tensor, x: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """Step to the plane on which the linearised logits of label and target are equal."""
        images = point.detach().requires_grad_()
        with torch.enable_grad():
            gap = logit_gap(self.get_logits(images), y, target)
            (gradient,) = torch.autograd.grad(gap.sum(), images)
        return step_to_plane(point, x, gap.detach(), gradient, self.project, self.norm)


def logit_gap(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return z_t - z_y: (B, K), (B,), (B,) -> (B,)."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def step_to_plane(
    point: Tensor, x: Tensor, gap: Tensor, gradient: Tensor, project: Projection, norm: str
) -> Tensor:
    """Step from `point` past the plane where the linearised gap is 0, pulled towards x.

    point, x, gradient of the gap: (B, C, H, W); gap: (B,).
    """
    current, original, w = point.flatten(1), x.flatten(1), gradient.flatten(1)
    level = vecdot(w, current) - gap
    change, change_from_original = project(current, w, level), project(original, w, level)
    length = perturbation_norm(change, norm).clamp(min=1e-8)
    length_from_original = perturbation_norm(change_from_original, norm).clamp(min=1e-8)
    pull = (length / (length + length_from_original)).clamp(max=LARGEST_PULL)[:, None]
    moved = current.add(change, alpha=OVERSHOOT)
    moved_original = original.add(change_from_original, alpha=OVERSHOOT)
    return torch.lerp(moved, moved_original, pull).clamp_(0, 1).view_as(x)


def projection_linf(points: Tensor, w: Tensor, b: Tensor, rounds: int | None = None) -> Tensor:
    """Return the smallest l-inf change of each point: (B, D) to the plane <w, t> = b, b: (B,).

    Points stay in the box [0, 1]; out of reach of the plane, each pixel moves to a face of the box.

    Args:
        rounds: of Newton's method, as many for all points; None: until no radius changes, which a
            device has to be asked.
    """
    excess = vecdot(w, points) - b
    direction = w.sign() * torch.where(excess >= 0, -1, 1)[:, None]
    # Arithmetic instead of a mask: comparing pixels is slow on a CPU.
    room = torch.addcmul(direction.relu(), direction, points, value=-1)
    weight, needed = w.abs(), excess.abs()
    # Moving every pixel by at most r towards the plane gains f(r) = sum |w| min(r, room), concave
    # and piecewise linear. So Newton's method from below finds the exact root without a sort of
    # the pixels, in as many rounds as it crosses pieces.
    radius = needed / weight.sum(dim=1).clamp(min=1e-30)
    for _ in range(rounds or MAX_ROUNDS):
        gained = vecdot(weight, torch.minimum(room, radius[:, None]))
        slope = vecdot(weight, (room - radius[:, None]).relu_().sign_())
        step = torch.where(slope > 0, (needed - gained) / slope.clamp(min=1e-30), 0)
        larger = torch.maximum(radius, radius + step)
        if rounds is None and torch.equal(larger, radius):
            break
        radius = larger
    radius = radius.masked_fill(needed >= vecdot(weight, room), torch.inf)
    return torch.minimum(room, radius[:, None]) * direction


def projection_l2(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Return the smallest L2 change of each point, as `projection_linf`; as torchattacks finds it.

    torchattacks' own asks which rows need which of three cases; here all are computed.
    """
    excess = (w * points).sum(dim=1) - b
    sign = torch.where(excess >= 0, 1.0, -1.0)
    w, excess = w * sign[:, None], excess * sign
    # How far along -w each pixel can go until it meets a face of the box, and pixels in that order.
    reach = torch.maximum(points / w, (points - 1) / w).clamp(-FAR, FAR)
    reach = reach.masked_fill(w.abs() < 1e-8, FAR)
    reach = reach.masked_fill(reach == -FAR, FAR)
    ordered, order = reach.sort(dim=1)
    following = pad(ordered[:, 1:], (0, 1))
    ordered = ordered.masked_fill(ordered == FAR, 0)
    following = following.masked_fill(following == FAR, 0)
    squares = (w**2).gather(1, order)
    total = squares.sum(dim=1, keepdim=True)
    rest = total - squares.cumsum(dim=1)
    to_faces = -(reach * w) * (w.abs() > 1e-8)
    first = -total * ordered[:, :1]
    gained = torch.cat((first, ((ordered - following) * rest).cumsum(dim=1) + first), dim=1)
    free = gained[:, 0] + excess < 0
    out_of_reach = (to_faces * w).sum(dim=1) + excess > 0
    at = _bisect(gained, excess, w.shape[1])
    gained_at, rest_at = gained.gather(1, at), rest.gather(1, at)
    length = (gained_at + excess[:, None]) / rest_at + ordered.gather(1, at)
    length = length.masked_fill(rest_at == 0, 0)
    partly = torch.where(length > reach, to_faces, -length * w)
    change = torch.where(out_of_reach[:, None], to_faces, partly)
    change = torch.where(free[:, None], -(excess[:, None] / total) * w, change)
    return change * (w.abs() > 1e-8)


def _bisect(gained: Tensor, excess: Tensor, pixels: int) -> Tensor:
    """Return the last column with gained + excess > 0, of decreasing rows: (B, 1)."""
    low = torch.zeros_like(excess)
    high = torch.full_like(excess, pixels - 1)
    for _ in range(math.ceil(math.log2(pixels))):
        middle = torch.floor((low + high) / 2)
        positive = gained.gather(1, middle.long()[:, None]).squeeze(1) + excess > 0
        low, high = torch.where(positive, middle, low), torch.where(positive, high, middle)
    return low.long()[:, None]


@contextmanager
def without_sort() -> Iterator[None]:
    """Make torchattacks' FAB use `projection_linf` of this module."""
    original = fab.projection_linf
    fab.projection_linf = projection_linf
    try:
        yield
    finally:
        fab.projection_linf = original
