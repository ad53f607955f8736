"""Robust soft label adversarial distillation (RSLAD).

The teacher's clean soft labels replace the hard label in the inner and the outer problem. Code:
zibojia/RSLAD at c40e04f6c4; alpha = 5/6, the attack in eval mode from Gaussian noise, and the
adversarial forward before the clean one are from it.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl, kl_reduction, kl_scale
from methods.inner import kl_to, pgd
from methods.recipes import RAW_PIXELS, THREE_FALLS_300_EPOCHS


@dataclass(frozen=True)
class Rslad(Method):
    """(1 - alpha) KL(T(x) || S(x)) + alpha KL(T(x) || S(x~)), x~ = argmax KL(T(x) || S(x~))."""

    formula = r"""
        L &= (1-\alpha)\,\mathrm{KL}(T(x)\,\|\,S(x))
          + \alpha\,\mathrm{KL}(T(x)\,\|\,S(\tilde{x})) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(T(x)\,\|\,S(x'))
    """
    paper = Paper(
        "Zi, Zhao, Ma and Jiang",
        "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better",
        "ICCV",
        2021,
        "https://arxiv.org/abs/2108.07969",
    )
    recipe = (*THREE_FALLS_300_EPOCHS, *RAW_PIXELS)
    epoch_dependent = False

    alpha: float = hp(5 / 6, "share of the adversarial term", low=0.5, high=1.0, most=1.0)
    reduction: str = kl_reduction("tenth")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        objective = kl_to(nets.teacher_logits(batch))
        return pgd(nets.student, batch.x, objective, batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.teacher_logits(batch)
        weight = kl_scale(self.reduction, target.shape[1])
        # The adversarial forward comes first, as in the script: BatchNorm's statistics show it.
        kl_adv = kl(target, nets.student(adv)).mean()
        kl_nat = kl(target, nets.student(batch.x)).mean()
        return {"kl_adv": weight * self.alpha * kl_adv, "kl": weight * (1 - self.alpha) * kl_nat}


METHOD = Rslad
