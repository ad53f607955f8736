"""FAB of torchattacks without a sort of every pixel, with early exit and several targets in a pass.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
ICML 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchattacks
from torch import Tensor
from torch.linalg import vecdot
from torchattacks.attacks import fab

from attacks.attacked_model import perturbation_norm

# A bound only: Newton's method needs a handful.
MAX_ROUNDS = 100


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
        self.project = projection_linf if self.norm == "Linf" else fab.projection_l2

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
            fraction = torch.where(wrong, self.beta, 1.0).view(-1, 1, 1, 1)
            point = torch.lerp(x, point, fraction)

    def _step(self, point: Tensor, x: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """Step to the plane on which the linearised logits of label and target are equal."""
        images = point.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.get_logits(images)
            gap = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
            w = torch.autograd.grad(gap.sum(), images)[0].flatten(1)
        current, original = point.flatten(1), x.flatten(1)
        level = vecdot(w, current) - gap.detach()
        change = self.project(current, w, level)
        change_from_original = self.project(original, w, level)
        norm = perturbation_norm(change, self.norm).clamp(min=1e-8)
        norm_from_original = perturbation_norm(change_from_original, self.norm).clamp(min=1e-8)
        pull = (norm / (norm + norm_from_original)).clamp(max=self.alpha_max)[:, None]
        moved = current.add(change, alpha=self.eta)
        moved_original = original.add(change_from_original, alpha=self.eta)
        return torch.lerp(moved, moved_original, pull).clamp_(0, 1).view_as(x)


def projection_linf(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Return the smallest l-inf change of each point: (B, D) to the plane <w, t> = b, b: (B,).

    Points stay in the box [0, 1]; out of reach of the plane, each pixel moves to a face of the box.
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
