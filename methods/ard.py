"""Adversarially robust distillation (ARD).

From the paper: teacher on clean images, student on adversarial ones, inner maximisation of the
cross-entropy. Code: goldblum/AdversariallyRobustDistillation at 779ade36d6; alpha = 1 and tau = 30
are from it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl, kl_reduction, kl_scale, quirk
from methods.inner import ce, pgd
from methods.recipes import ONE_FALL_200_EPOCHS, RAW_PIXELS


@dataclass(frozen=True)
class Ard(Method):
    """(1 - alpha) CE(S(x), y) + alpha tau^2 KL(T(x) || S(x~)), softened by tau; inner CE."""

    formula = r"""
        L &= (1-\alpha)\,\mathrm{CE}(S(x), y)
          + \alpha\tau^2\,\mathrm{KL}(T(x)/\tau\,\|\,S(\tilde{x})/\tau) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Goldblum, Fowl, Feizi and Goldstein",
        "Adversarially Robust Distillation",
        "AAAI",
        2020,
        "https://arxiv.org/abs/1905.09747",
    )
    recipe = (*ONE_FALL_200_EPOCHS, *RAW_PIXELS)
    epoch_dependent = False

    alpha: float = hp(1.0, "share of the distillation term", low=0.0, high=1.0, most=1.0)
    tau: float = hp(30.0, "temperature", low=1.0, high=30.0, log=True, above=0.0)
    reduction: str = kl_reduction("mean")
    train_mode_attack: bool = quirk(False, True, "BatchNorm's statistics move in the attack")
    extra_forward: bool = quirk(False, True, "BatchNorm sees the clean images too, at weight 0")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, train=self.train_mode_attack)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.teacher_logits(batch)
        weight = self.alpha * self.tau**2 * kl_scale(self.reduction, target.shape[1])
        terms = {"kl_adv": weight * kl(target, nets.student(adv), self.tau).mean()}
        if self.alpha < 1:
            terms["ce"] = (1 - self.alpha) * F.cross_entropy(nets.student(batch.x), batch.y)
        elif self.extra_forward:
            with torch.no_grad():
                nets.student(batch.x)
        return terms


METHOD = Ard
