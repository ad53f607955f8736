"""Misclassification-aware adversarial training (MART).

Code: YisenWang/MART at 2d83e17b38. From it: beta = 5, the attack in eval mode from Gaussian noise,
the constants that keep logarithm and weight positive. Step and radius are the suite's (the authors:
0.007 and 0.031).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl, quirk, true_class_probability
from methods.inner import both_logits, ce, pgd
from methods.recipes import FREE_START, RAW_PIXELS, sgd


@dataclass(frozen=True)
class Mart(Method):
    """BCE(S(x~), y) + beta mean_i (1 - p_S(y_i | x_i)) KL(S(x) || S(x~)); inner CE.

    BCE = -log p(y | x~) - log(1 - max_{c != y} p(c | x~)).
    """

    formula = r"""
        L &= \mathrm{BCE} + \frac{\beta}{B}\sum_i (1 - p_S(y_i \mid x_i))\,
          \mathrm{KL}(S(x_i)\,\|\,S(\tilde{x}_i)) \\
        \mathrm{BCE} &= -\log\, p_S(y \mid \tilde{x})
          - \log(1 - \max_{c \ne y} p_S(c \mid \tilde{x})) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Wang et al.",
        "Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
        "ICLR",
        2020,
        "https://openreview.net/forum?id=rklOg6EFwS",
    )
    teacher_roles = ()
    recipe = (
        *sgd(
            120,
            *(74 / 120, 89 / 120, 99 / 120),
            lr=0.01,
            weight_decay=3.5e-3,
            why={
                "epochs": "shorter than the long suites here",
                "milestones": "three falls instead of two",
            },
        ),
        *FREE_START,
        *RAW_PIXELS,
    )
    epoch_dependent = False

    beta: float = hp(5.0, "weight of the term for misclassified images", low=1.0, high=12.0)
    script_passes: bool = quirk(
        False,
        True,
        "the student sees x before x~, so its running statistics end nearer to x~",
        later=True,
    )

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        logits_adv, logits_nat = both_logits(
            nets.student, adv, batch.x, clean_first=self.script_passes
        )
        p_wrong = logits_adv.softmax(dim=1).scatter(1, batch.y[:, None], 0).amax(dim=1)
        # The script's constants: without them a sure network has log 0, or a weight below 0.
        bce = F.cross_entropy(logits_adv, batch.y) - (1.0001 - p_wrong).log().mean()
        weight = 1.0000001 - true_class_probability(logits_nat, batch.y)
        kl_adv = (weight * kl(logits_nat, logits_adv)).mean()
        return {"bce": bce, "kl_adv": self.beta * kl_adv}


METHOD = Mart
