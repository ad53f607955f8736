"""FAB of torchattacks without a sort of every pixel, with early exit and several targets in a pass.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
ICML 2020.
"""

from __future__ import annotations

from typing import Any

import torch
import torchattacks
from torch import Tensor
from torch.linalg import vecdot
from torchattacks.attacks.fab import projection_l2

from attacks.attacked_model import perturbation_norm
from attacks.components.fab_projection import projection_linf, without_sort


class FAB(torchattacks.FAB):  # type: ignore[misc]
    """FAB towards the nearest class; drops an image with its first misclassified iterate in the ball."""

    def attack_single_run(self, x: Tensor, y: Tensor, use_rand_start: bool = False) -> Tensor:
        adv = x
        with without_sort(), self.model.early_exit(x, y, self.eps, self.norm) as early:
            adv = super().attack_single_run(x, y, use_rand_start)
        merged: Tensor = early.merge(adv)
        return merged


class FABT(torchattacks.FAB):  # type: ignore[misc]
    """FAB towards the second to the tenth class of the clean prediction.

    An image and a target are a pair. A pass takes up to `batch_size` pairs. The first misclassified
    iterate in the ball drops all pairs of its image.
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
        # Nothing is random and no target depends on another: their order changes no verdict.
        while len(rows) and targets.shape[1]:
            count = min(max(self.batch_size // len(rows), 1), targets.shape[1])
            source = rows.repeat_interleave(count)
            target = targets[rows, :count].flatten()
            self._descend(x[source], y[source], target, source, adv)
            unchanged = perturbation_norm(adv[rows] - x[rows], self.norm) == 0
            rows, targets = rows[unchanged], targets[:, count:]
        return adv

    def _descend(self, x: Tensor, y: Tensor, target: Tensor, source: Tensor, adv: Tensor) -> None:
        """Attack the pairs (x[r]: (C, H, W), target[r]); writes adversarial examples to adv[source[r]]."""
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
        from_current = self.project(current, w, level)
        from_original = self.project(original, w, level)
        current_norm = perturbation_norm(from_current, self.norm).clamp(min=1e-8)
        original_norm = perturbation_norm(from_original, self.norm).clamp(min=1e-8)
        pull = (current_norm / (current_norm + original_norm)).clamp(max=self.alpha_max)[:, None]
        moved_current = current.add(from_current, alpha=self.eta)
        moved_original = original.add(from_original, alpha=self.eta)
        return torch.lerp(moved_current, moved_original, pull).clamp_(0, 1).view_as(x)
