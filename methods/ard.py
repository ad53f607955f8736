"""Adversarially robust distillation (ARD).

Paper: Goldblum, Fowl, Feizi and Goldstein, "Adversarially Robust Distillation", AAAI 2020.
From the paper: teacher on clean images, student on adversarial ones, inner maximisation of the cross-entropy.
From the authors' code: alpha = 1, tau = 30. Left out as quirks of that code: KL divided by the number of classes, attack
in train mode, an extra clean forward of weight 0 (all change BatchNorm statistics or loss scale).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl
from methods.inner import ce, pgd


@dataclass(frozen=True)
class Ard(Method):
    """(1 - alpha) CE(S(x), y) + alpha tau^2 KL(T(x) || S(x~)), softened by tau; x~ = argmax CE(S(x~), y)."""

    alpha: float = hp(1.0, "share of the distillation term", low=0.0, high=1.0)
    tau: float = hp(30.0, "temperature", low=1.0, high=30.0, log=True)

    def loss(self, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = nets.teacher(batch.x)
        adv = pgd(nets.student, batch.x, ce(batch.y), batch.budget)
        terms = {"kl_adv": self.alpha * self.tau**2 * kl(target, nets.student(adv), self.tau).mean()}
        if self.alpha < 1:
            terms["ce"] = (1 - self.alpha) * F.cross_entropy(nets.student(batch.x), batch.y)
        return terms


METHOD = Ard
