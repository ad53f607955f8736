"""Introspective adversarial distillation, first form (IAD-I).

Paper: Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers", ICLR 2022, in the
form restated by RSLAD's Table 1: the teacher is trusted by its probability of the true class on the
student's adversarial example, the student's own clean prediction takes the rest. Code: ZFancy/IAD
at a8091a8c75; beta = 0.1, tau = 1 and the self target that is not detached are from it; its unused
forwards, which move BatchNorm, are left out. The restated formula has no warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Nets, quirk
from methods.inner import ce, pgd
from methods.introspective import Introspective
from methods.recipes import ONE_FALL_200_EPOCHS


@dataclass(frozen=True)
class Iad(Introspective):
    """mean_i tau^2 [a_i KL(T(x) || S(x~)) + (1 - a_i) KL(S(x) || S(x~))],
    a_i = p_T(y_i | x~_i)^beta; inner CE.

    Both terms are softened by tau.
    """

    recipe = ONE_FALL_200_EPOCHS

    train_mode_attack: bool = quirk(
        False, True, "BatchNorm's statistics move at each step of the attack"
    )

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, train=self.train_mode_attack)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target_nat, target_adv = nets.teacher_logits(batch), nets.teacher_logits_at(adv)
        return self.introspective_loss(nets, batch, adv, target_nat, target_adv)


METHOD = Iad
