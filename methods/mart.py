"""Misclassification-aware adversarial training (MART).

Paper: Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020.
Code: YisenWang/MART at 2d83e17b38. From it: beta = 5, the attack in eval mode from Gaussian noise, the constants that keep
logarithm and weight positive. Step and radius are the suite's (the authors: 0.007 and 0.031).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl, trust
from methods.inner import ce, pgd


@dataclass(frozen=True)
class Mart(Method):
    """BCE(S(x~), y) + beta mean_i (1 - p_S(y_i | x_i)) KL(S(x) || S(x~)); inner CE.

    BCE = -log p(y | x~) - log(1 - max_{c != y} p(c | x~)).
    """

    requires = ()
    recipe = (
        ("epochs", 120, "shorter than the long suites here"),
        ("schedule", "multistep", "as in the script"),
        ("milestones", (74 / 120, 89 / 120, 99 / 120), "three falls instead of two"),
        ("lr", 0.01, "a tenth of the usual rate"),
        ("weight_decay", 3.5e-3, "seven times the usual"),
    )

    beta: float = hp(5.0, "weight of the term for misclassified images", low=1.0, high=12.0)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        far, near = nets.student(adv), nets.student(batch.x)
        wrong = far.softmax(dim=1).scatter(1, batch.y[:, None], 0).amax(dim=1)
        missed = 1.0000001 - trust(near, batch.y)
        return {
            "bce": F.cross_entropy(far, batch.y) - (1.0001 - wrong).log().mean(),
            "kl_adv": self.beta * (missed * kl(near, far)).mean(),
        }


METHOD = Mart
