"""Adaptive adversarial distillation (AdaAD).

The attack looks for the point where student and teacher disagree most, so its gradient goes through
both. Code: boyellow/AdaAD at 9e5c6e5ff7. From it: lambda = 1 (alpha here) and the Gaussian start.
Epochs, milestones and weight decay of the script are this benchmark's; its default radius of 16/255
is not used by the paper.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl, kl_reduction, kl_scale, quirk
from methods.inner import kl_between, pgd
from methods.recipes import RAW_PIXELS, TWO_FALLS_200_EPOCHS


@dataclass(frozen=True)
class Adaad(Method):
    """alpha KL(T(x~) || S(x~)) + (1 - alpha) KL(T(x) || S(x)), x~ = argmax KL(T(x~) || S(x~))."""

    formula = r"""
        L &= \alpha\,\mathrm{KL}(T(\tilde{x})\,\|\,S(\tilde{x}))
          + (1-\alpha)\,\mathrm{KL}(T(x)\,\|\,S(x)) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(T(x')\,\|\,S(x'))
    """
    paper = Paper(
        "Huang et al.",
        "Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial Distillation",
        "CVPR",
        2023,
        "https://openaccess.thecvf.com/content/CVPR2023/html/Huang_Boosting_Accuracy_and_"
        "Robustness_of_Student_Models_via_Adaptive_Adversarial_CVPR_2023_paper.html",
    )
    recipe = (*TWO_FALLS_200_EPOCHS, *RAW_PIXELS)
    epoch_dependent = False

    alpha: float = hp(1.0, "share of the adversarial term", low=0.25, high=1.0, most=1.0)
    reduction: str = kl_reduction("mean10")
    extra_forward: bool = quirk(False, True, "BatchNorm sees the clean images too, at weight 0")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, kl_between(nets.teacher), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.teacher_logits_at(adv)
        weight = kl_scale(self.reduction, target.shape[1])
        terms = {"kl_adv": weight * self.alpha * kl(target, nets.student(adv)).mean()}
        if self.alpha < 1:
            kl_nat = kl(nets.teacher_logits(batch), nets.student(batch.x)).mean()
            terms["kl"] = weight * (1 - self.alpha) * kl_nat
        elif self.extra_forward:
            with torch.no_grad():
                nets.student(batch.x)
        return terms


METHOD = Adaad
