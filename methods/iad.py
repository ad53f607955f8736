"""Introspective adversarial distillation, first form (IAD-I).

Paper: Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers", ICLR 2022, in the form restated by RSLAD's
Table 1: the teacher is trusted by its probability of the true class on the student's adversarial image, the student's own
clean prediction takes the rest. From the authors' code: beta = 0.1, tau = 1, the self target is not detached; `begin` is
theirs too (0.3 of the epochs of plain ARD first) and off by default because the restated formula has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl
from methods.inner import ce, pgd


@dataclass(frozen=True)
class Iad(Method):
    """mean_i tau^2 [a_i KL(T(x) || S(x~)) + (1 - a_i) KL(S(x) || S(x~))], a_i = p_T(y_i | x~_i)^beta; inner CE."""

    beta: float = hp(0.1, "exponent of the teacher's reliability; 0 trusts the teacher fully", low=0.0, high=1.0)
    tau: float = hp(1.0, "temperature", low=1.0, high=30.0, log=True)
    begin: float = hp(0.0, "fraction of the epochs trained with the teacher alone", low=0.0, high=0.5)
    detach: bool = hp(False, "stop the gradient through the self target S(x)")

    def loss(self, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        student, teacher = nets.student, nets.teacher
        adv = pgd(student, batch.x, ce(batch.y), batch.budget)
        with torch.no_grad():
            target = teacher(batch.x)
            trust = teacher(adv).softmax(dim=1).gather(1, batch.y[:, None]).squeeze(1) ** self.beta
        if batch.epoch < self.begin * batch.epochs:
            trust = torch.ones_like(trust)
        logits = student(adv)
        own = student(batch.x)
        own = own.detach() if self.detach else own
        return {
            "kl_teacher": self.tau**2 * (trust * kl(target, logits, self.tau)).mean(),
            "kl_self": self.tau**2 * ((1 - trust) * kl(own, logits, self.tau)).mean(),
        }


METHOD = Iad
