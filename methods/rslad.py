"""Robust soft label adversarial distillation (RSLAD).

Paper: Zi, Zhao, Ma and Jiang, "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better",
ICCV 2021: the teacher's clean soft labels replace the hard label in the inner and the outer problem.
Code: zibojia/RSLAD at c40e04f6c4; alpha = 5/6, the attack in eval mode from Gaussian noise, and the adversarial forward
before the clean one are from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl, quirk, scale
from methods.inner import kl_to, pgd
from methods.recipes import LONGER


@dataclass(frozen=True)
class Rslad(Method):
    """(1 - alpha) KL(T(x) || S(x)) + alpha KL(T(x) || S(x~)), x~ = argmax KL(T(x) || S(x~))."""

    recipe = LONGER

    alpha: float = hp(5 / 6, "share of the adversarial term", low=0.5, high=1.0, most=1.0)
    reduction: str = quirk(
        "batchmean", "tenth", "a tenth of the KL, a smaller loss against the weight decay"
    )

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, kl_to(nets.clean(batch)), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.clean(batch)
        weight = scale(self.reduction, target.shape[1])
        return {
            "kl_adv": weight * self.alpha * kl(target, nets.student(adv)).mean(),
            "kl": weight * (1 - self.alpha) * kl(target, nets.student(batch.x)).mean(),
        }


METHOD = Rslad
