"""Adversarial knowledge distillation (AKD): adversarial training on label and teacher output.

Neither the paper's text nor code could be read: mixture and attack are as later papers restate
them; alpha, tau and the teacher at x~ are assumptions.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl
from methods.inner import ce, pgd


@dataclass(frozen=True)
class Akd(Method):
    """(1 - alpha) CE(S(x~), y) + alpha tau^2 KL(T(u) || S(x~)), softened by tau; inner CE.

    u: x~, or x with `teacher_input` clean.
    """

    formula = r"""
        L &= (1-\alpha)\,\mathrm{CE}(S(\tilde{x}), y)
          + \alpha\tau^2\,\mathrm{KL}(T(u)/\tau\,\|\,S(\tilde{x})/\tau) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Maroto, Ortiz-Jimenez and Frossard",
        "On the benefits of knowledge distillation for adversarial robustness",
        "arXiv",
        2022,
        "https://arxiv.org/abs/2203.07159",
    )
    epoch_dependent = False

    alpha: float = hp(0.5, "share of the teacher", low=0.0, high=1.0, most=1.0)
    tau: float = hp(1.0, "temperature", low=1.0, high=30.0, log=True, above=0.0)
    teacher_input: str = hp("adv", "what the teacher sees, u", choices=("adv", "clean"))

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.teacher_logits_at(adv if self.teacher_input == "adv" else batch.x)
        logits_adv = nets.student(adv)
        kl_adv = kl(target, logits_adv, self.tau).mean()
        ce_adv = F.cross_entropy(logits_adv, batch.y)
        return {"ce_adv": (1 - self.alpha) * ce_adv, "kl_adv": self.alpha * self.tau**2 * kl_adv}


METHOD = Akd
