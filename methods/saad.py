"""Sample-wise adaptive adversarial distillation (SAAD; SAAD-C with beta > 0).

Paper: Lee and Chung, arXiv 2512.10275. From it: images on which the teacher is sure are weighed down by its entropy; AdaAD's
inner problem is linearised, so a step costs one teacher backward and not ten; alpha = 1 and beta = 0.2 for CIFAR-10.
Code: HongsinLee/saad at 295121c5d2; from it: the slope's factor 1. Left out: with beta = 0 the student's clean pass, which
only BatchNorm sees. Assumed: the entropy of the clean term's weight is normalised by log C.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.adaptive import by_entropy
from methods.base import Batch, Method, Nets, hp, kl, quirk
from methods.gradients import gap, linearised
from methods.inner import pgd
from methods.recipes import LIGHT, averaged


@dataclass(frozen=True)
class Saad(Method):
    """mean_i H_i [KL(T(x~) || S(x~)) + alpha IGDM_i] + beta mean_i (1 - H_i / log C) KL(T(x) || S(x)), H: T's entropy at x~.

    x~ = argmax KL(T_lin(x~) || S(x~)); T_lin: clean logits, that of the true class corrected by its gradient.
    """

    recipe = (*LIGHT, *averaged(95 / 200))

    alpha: float = hp(
        1.0, "weight of the gradient term (20 on CIFAR-100)", low=0.1, high=30.0, log=True
    )
    beta: float = hp(0.0, "weight of the clean term; SAAD-C: 0.2", low=0.0, high=1.0)
    slope: float = hp(1.0, "factor of the linear correction", low=0.1, high=2.0, log=True)
    shifted: bool = quirk(
        False, True, "weights are 5 (H_i - min H), and between 0 and 1 in the clean term"
    )
    ramp: bool = quirk(False, True, "alpha grows linearly over the epochs, as in IGDM")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(
            nets.student,
            batch.x,
            linearised(nets.teacher, batch, self.slope),
            batch.budget,
            start="gauss",
        )

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.at(adv)
        w, sure = self.weights(target)
        alpha = self.alpha * (batch.progress if self.ramp else 1.0)
        far = nets.student(adv)
        terms = {
            "kl_adv": (w * kl(target, far)).mean(),
            "igdm": alpha * (w * gap(nets, 2 * batch.x - adv, target, far)).mean(),
        }
        if self.beta:
            terms["kl"] = self.beta * (sure * kl(nets.clean(batch), nets.student(batch.x))).mean()
        return terms

    def weights(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C) teacher logits -> weights of the adversarial and the clean terms, (B,) each."""
        return by_entropy(target, self.shifted)


METHOD = Saad
