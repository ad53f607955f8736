"""Knowledge distillation with input gradient alignment (KDIGA).

Paper: Shao et al., "How and When Adversarial Robustness Transfers in Knowledge Distillation?", arXiv 2110.12072, 2021.
Code: RulinShao/AdversariallyRobustDistillation at 12e774f4b7. From it: alpha = gamma = 0.5, tau = 1; its second form,
KDIGA-ARD, has both networks at x~ in the soft term. Assumed: the norm is one for each image, averaged over the batch, whose
BatchNorm statistics tie the student's gradients; the script's is one norm of the batch's gradients of the mean loss, over
the batch size, so its gamma is another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl, quirk, scale
from methods.gradients import of_both
from methods.inner import ce, pgd
from methods.recipes import STUCK


@dataclass(frozen=True)
class Kdiga(Method):
    """(1 - alpha) CE(S(x), y) + alpha tau^2 KL(T(v) || S(v)) + gamma mean_i |grad_x CE(S(x_i)) - grad_x CE(T(x_i))|.

    v: clean images, or x~ = argmax CE(S(x~), y).
    """

    recipe = STUCK

    alpha: float = hp(0.5, "share of the soft term", low=0.0, high=1.0, most=1.0)
    gamma: float = hp(0.5, "weight of the gradients", low=0.05, high=50.0, log=True)
    tau: float = hp(1.0, "temperature", low=1.0, high=30.0, log=True, above=0.0)
    inputs: str = hp("clean", "what the soft term sees; adv: KDIGA-ARD", choices=("clean", "adv"))
    reduction: str = quirk(
        "batchmean", "mean", "KL averaged over the classes too: a tenth of it on 10 classes"
    )

    @property
    def adversarial(self) -> bool:
        return self.inputs == "adv"

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return (
            pgd(nets.student, batch.x, ce(batch.y), batch.budget) if self.adversarial else batch.x
        )

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        apart, near, target = of_both(nets, batch)
        soft, seen = (nets.at(adv), nets.student(adv)) if self.adversarial else (target, near)
        weight = self.alpha * self.tau**2 * scale(self.reduction, soft.shape[1])
        return {
            "ce": (1 - self.alpha) * F.cross_entropy(near, batch.y),
            "kl": weight * kl(soft, seen, self.tau).mean(),
            "gradient": self.gamma * apart.mean(),
        }


METHOD = Kdiga
