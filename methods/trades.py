"""TRADES.

Paper: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019.
From the authors' code: the clean target of the outer KL is not detached; the attack starts from Gaussian noise and sees
the student in eval mode. Under the common protocol step and radius are the suite's (the authors: 0.007 and 0.031).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl
from methods.inner import kl_to, mode, pgd


@dataclass(frozen=True)
class Trades(Method):
    """CE(S(x), y) + beta KL(S(x) || S(x~)), x~ = argmax KL(S(x) || S(x~))."""

    requires = ()

    beta: float = hp(6.0, "weight of the robust term", low=1.0, high=12.0)

    def loss(self, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        student, x = nets.student, batch.x
        with torch.no_grad(), mode(student, training=False):
            target = student(x)
        adv = pgd(student, x, kl_to(target), batch.budget, start="gauss")
        clean = student(x)
        return {
            "ce": F.cross_entropy(clean, batch.y),
            "kl_adv": self.beta * kl(clean, student(adv)).mean(),
        }


METHOD = Trades
