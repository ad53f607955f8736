"""Robust soft label adversarial distillation (RSLAD).

Paper: Zi, Zhao, Ma and Jiang, "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better",
ICCV 2021. From the paper: the teacher's clean soft labels replace the hard label in the inner and the outer problem.
From the authors' code: alpha = 5/6, attack in eval mode from Gaussian noise, adversarial forward before the clean one.
Left out as a quirk of that code: KL averaged over classes as well, a tenth of the KL on 10 classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl
from methods.inner import kl_to, pgd


@dataclass(frozen=True)
class Rslad(Method):
    """(1 - alpha) KL(T(x) || S(x)) + alpha KL(T(x) || S(x~)), x~ = argmax KL(T(x) || S(x~))."""

    alpha: float = hp(5 / 6, "share of the adversarial term", low=0.5, high=1.0)

    def loss(self, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = nets.teacher(batch.x)
        adv = pgd(nets.student, batch.x, kl_to(target), batch.budget, start="gauss")
        return {
            "kl_adv": self.alpha * kl(target, nets.student(adv)).mean(),
            "kl": (1 - self.alpha) * kl(target, nets.student(batch.x)).mean(),
        }


METHOD = Rslad
