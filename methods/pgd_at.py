"""PGD adversarial training.

From the paper: inner maximisation and outer minimisation of the cross-entropy. The attack is in
eval mode.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper
from methods.inner import ce, pgd


@dataclass(frozen=True)
class PgdAt(Method):
    """CE(S(x~), y), x~ = argmax CE(S(x~), y)."""

    formula = r"""
        L &= \mathrm{CE}(S(\tilde{x}), y) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Madry et al.",
        "Towards Deep Learning Models Resistant to Adversarial Attacks",
        "ICLR",
        2018,
        "https://arxiv.org/abs/1706.06083",
    )
    teacher_roles = ()
    epoch_dependent = False

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        return {"ce_adv": F.cross_entropy(nets.student(adv), batch.y)}


METHOD = PgdAt
