"""Gated distillation: the teacher where it is right, the label elsewhere.

An example of a method from outside the repository, after no paper: adversarial training and
distillation take turns image by image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl
from methods.inner import ce, pgd


@dataclass(frozen=True)
class Gated(Method):
    """mean_i [g_i KL(T(x_i) || S(x~_i)) + (1 - g_i) CE(S(x~_i), y_i)]; inner CE.

    g_i = alpha [argmax T(x_i) = y_i].
    """

    formula = r"""
        L &= \frac{1}{B}\sum_i [g_i\,\mathrm{KL}(T(x_i)\,\|\,S(\tilde{x}_i))
          + (1-g_i)\,\mathrm{CE}(S(\tilde{x}_i), y_i)] \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    epoch_dependent = False

    alpha: float = hp(0.9, "weight of a teacher that is right", low=0.0, high=1.0, most=1.0)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        """Solve the inner problem: return images that the student gets wrong."""
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        """Return the outer problem's terms at those images."""
        target, logits_adv = nets.teacher_logits(batch), nets.student(adv)
        gate = self.alpha * (target.argmax(dim=1) == batch.y)
        ce_adv = F.cross_entropy(logits_adv, batch.y, reduction="none")
        return {
            "kl_adv": (gate * kl(target, logits_adv)).mean(),
            "ce_adv": ((1 - gate) * ce_adv).mean(),
        }
