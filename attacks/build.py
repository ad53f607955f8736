"""Catalogue entries -> torchattacks objects, with the official budgets and without torchattacks' known defects."""

from __future__ import annotations

from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

from attacks.catalog import Attack

REFERENCE_EPS = 8 / 255
MAX_TARGETS = 9  # the official AutoAttack's, also for more than ten classes


class MarginPGD(torchattacks.PGD):  # type: ignore[misc]
    """PGD on the margin max_{c != y} z_c - z_y, the l-inf "CW" of the robustness literature.

    torchattacks' own margin losses floor the runner-up at 0 and fail where all other logits are negative.
    """

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        adv = images + torch.empty_like(images).uniform_(-self.eps, self.eps)
        adv = adv.clamp(0, 1).detach()
        true = nn.functional.one_hot(labels, self.num_classes).bool()
        for _ in range(self.steps):
            adv.requires_grad_()
            logits = self.get_logits(adv)
            margin = logits.masked_fill(true, -torch.inf).amax(dim=1) - logits.gather(1, labels[:, None]).squeeze(1)
            (gradient,) = torch.autograd.grad(margin.sum(), adv)
            delta = (adv.detach() + self.alpha * gradient.sign() - images).clamp(-self.eps, self.eps)
            adv = (images + delta).clamp(0, 1).detach()
        return adv


def check(attack: Attack, num_classes: int) -> None:
    """Raises ValueError where an attack's loss is undefined for so few classes."""
    if attack.kind == "apgd-t" and num_classes < 4:
        raise ValueError(f"APGD-T's DLR loss needs at least 4 classes, the model has {num_classes}")


def build(attack: Attack, model: nn.Module, eps: float, num_classes: int, seed: int) -> Any:
    """The torchattacks object of one component against `model`. Raises ValueError as `check` does."""
    check(attack, num_classes)
    step = attack.step * eps / REFERENCE_EPS if attack.step else None
    targets = min(num_classes - 1, MAX_TARGETS)
    match attack.kind:
        case "fgsm":
            return torchattacks.FGSM(model, eps=eps)
        case "pgd":
            return torchattacks.PGD(model, eps=eps, alpha=step, steps=attack.steps, random_start=True)
        case "cw":
            margin = MarginPGD(model, eps=eps, alpha=step, steps=attack.steps)
            margin.num_classes = num_classes
            return margin
        case "apgd-ce":
            return torchattacks.APGD(model, norm="Linf", eps=eps, steps=attack.steps, loss="ce", seed=seed)
        case "apgd-t":
            return torchattacks.APGDT(model, norm="Linf", eps=eps, steps=attack.steps, seed=seed, n_classes=targets + 1)
        case "fab-t":
            return torchattacks.FAB(
                model, norm="Linf", eps=eps, steps=attack.steps, seed=seed, multi_targeted=True, n_classes=targets + 1
            )
        case "square":
            # the official schedule of p is written for 10,000 queries and not rescaled to 5,000
            return torchattacks.Square(
                model, norm="Linf", eps=eps, n_queries=attack.steps, resc_schedule=False, seed=seed
            )
