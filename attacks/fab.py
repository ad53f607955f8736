"""FAB of torchattacks without a sort of every pixel, whose images leave as they are broken; several targets at a time.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020.
"""

from __future__ import annotations

from typing import Any

import torch
import torchattacks
from torch import Tensor
from torch.linalg import vecdot
from torchattacks.attacks.fab import projection_l2

from attacks.projection import projection_linf, without_sort
from attacks.view import size


class FAB(torchattacks.FAB):  # type: ignore[misc]
    """FAB towards the nearest class; an image leaves with its first misclassified iterate inside the ball."""

    def attack_single_run(self, x: Tensor, y: Tensor, use_rand_start: bool = False) -> Tensor:
        adv = x
        with without_sort(), self.model.watching(x, y, self.eps, self.norm) as watch:
            adv = super().attack_single_run(x, y, use_rand_start)
        merged: Tensor = watch.merge(adv)
        return merged


class FABT(torchattacks.FAB):  # type: ignore[misc]
    """FAB towards the second to the tenth class of the clean prediction.

    Nothing in it is random and no target depends on another, so a pass takes several, up to `batch_size` images in all.
    An image leaves, with all its targets, as soon as one of them has a misclassified iterate inside the ball.
    """

    def __init__(self, model: Any, batch_size: int, **options: Any) -> None:
        super().__init__(model, **options, multi_targeted=True)
        self.batch_size = batch_size
        self.project = projection_linf if self.norm == "Linf" else projection_l2

    def perturb(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (B, C, H, W) with an adversarial image in place of each that was broken."""
        adv, left = x.clone(), torch.arange(len(x), device=x.device)
        with torch.no_grad():
            targets = self.get_logits(x).argsort(dim=1).flip(1)[:, 1 : self.n_target_classes + 1]
        while len(left) and targets.shape[1]:
            count = min(max(self.batch_size // len(left), 1), targets.shape[1])
            owner, target = left.repeat_interleave(count), targets[left, :count].flatten()
            self._descend(x[owner], y[owner], target, owner, adv)
            left, targets = left[size(adv[left] - x[left], self.norm) == 0], targets[:, count:]
        return adv

    def _descend(self, x: Tensor, y: Tensor, target: Tensor, owner: Tensor, adv: Tensor) -> None:
        """From images x: (R, C, H, W); what it finds for x[r] becomes adv[owner[r]]."""
        point = x
        for _ in range(self.steps):
            point = self._step(point, x, y, target)
            with torch.no_grad():
                wrong = self.get_logits(point).argmax(dim=1) != y
                hit = self.model.broken(point, x, y, wrong, self.eps, self.norm)
            if len(hit):
                adv[owner[hit]] = point[hit]
                kept = torch.isin(owner, owner[hit], invert=True)
                point, x, y, target, owner, wrong = (
                    part[kept] for part in (point, x, y, target, owner, wrong)
                )
                if not len(owner):
                    return
            back = torch.where(wrong, self.beta, 1.0).view(-1, 1, 1, 1)
            point = torch.lerp(x, point, back)

    def _step(self, point: Tensor, x: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """Towards the plane on which the linearised logits of label and target are equal, from points and from x."""
        images = point.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.get_logits(images)
            gap = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
            w = torch.autograd.grad(gap.sum(), images)[0].flatten(1)
        near, far = point.flatten(1), x.flatten(1)
        level = vecdot(w, near) - gap.detach()
        ways = self.project(near, w, level), self.project(far, w, level)
        length, other = (size(way, self.norm).clamp(min=1e-8) for way in ways)
        pull = (length / (length + other)).clamp(max=self.alpha_max)[:, None]
        moved = torch.lerp(
            near.add(ways[0], alpha=self.eta), far.add(ways[1], alpha=self.eta), pull
        )
        return moved.clamp_(0, 1).view_as(x)
