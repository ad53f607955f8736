"""Tradeoff-inspired adversarial defense via surrogate-loss minimization (TRADES).

Code: yaodongyu/TRADES at 6e8e11b7c2. From it: the clean target of the outer KL is not detached; the
attack starts from Gaussian noise and sees the student in eval mode. Step and radius are the suite's
(the authors: 0.007 and 0.031).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl, quirk
from methods.inner import eval_logits, kl_to, pgd
from methods.recipes import FREE_START, RAW_PIXELS, sgd


@dataclass(frozen=True)
class Trades(Method):
    """CE(S(x), y) + beta KL(S(x) || S(x~)), x~ = argmax KL(S(x) || S(x~))."""

    formula = r"""
        L &= \mathrm{CE}(S(x), y) + \beta\,\mathrm{KL}(S(x)\,\|\,S(\tilde{x})) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(S(x)\,\|\,S(x'))
    """
    paper = Paper(
        "Zhang et al.",
        "Theoretically Principled Trade-off between Robustness and Accuracy",
        "ICML",
        2019,
        "https://arxiv.org/abs/1901.08573",
    )
    teacher_roles = ()
    recipe = (
        *sgd(
            76,
            74 / 76,
            weight_decay=2e-4,
            why={
                "epochs": "stops early",
                "milestones": "so the rate falls for the last two epochs alone",
            },
        ),
        *FREE_START,
        *RAW_PIXELS,
    )
    epoch_dependent = False

    beta: float = hp(6.0, "weight of the robust term", low=1.0, high=12.0)
    script_passes: bool = quirk(
        False,
        True,
        "the target of the KL is a pass of its own, so running statistics see x twice",
        later=True,
    )

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        # In eval mode, as the attack is: else the objective is not zero at x.
        target = eval_logits(nets.student, batch.x)
        return pgd(nets.student, batch.x, kl_to(target), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        logits_nat, logits_adv = nets.student(batch.x), nets.student(adv)
        target = nets.student(batch.x) if self.script_passes else logits_nat
        kl_adv = self.beta * kl(target, logits_adv).mean()
        return {"ce": F.cross_entropy(logits_nat, batch.y), "kl_adv": kl_adv}


METHOD = Trades
