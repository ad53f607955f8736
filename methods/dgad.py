"""Dynamic guidance adversarial distillation (DGAD).

Paper: Park and Min, "Dynamic Guidance Adversarial Distillation with Enhanced Teacher Knowledge", ECCV 2024: images that the
teacher gets wrong already when clean are learnt clean, and the teacher's wrong outputs are put right.
Code: kunsaram01/DGAD at a0329c8605. From it: AdaAD's attack, the swap of the two logits, beta = 1. Left out: the misplaced
parenthesis of its MobileNetV2 branch, which halves a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl
from methods.inner import kl_between, pgd


@dataclass(frozen=True)
class Dgad(Method):
    """mean over images of KL(T'(x~) || S(x~)), or KL(T'(x) || S(x)) where T is wrong at x, + beta MSE(p_S(x~), p_S(x)).

    T': T with the logits of the true and the predicted class swapped; x~ = argmax KL(T(x~) || S(x~)).
    """

    beta: float = hp(1.0, "weight of the consistency of the student", low=0.0, high=10.0)
    swap: bool = hp(True, "put the teacher's wrong outputs right")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, kl_between(nets.teacher), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        clean = nets.clean(batch)
        target = nets.at(adv)
        right = (clean.argmax(dim=1) == batch.y).float()
        if self.swap:
            clean, target = swapped(clean, batch.y), swapped(target, batch.y)
        far, near = nets.student(adv), nets.student(batch.x)
        return {
            "kl_adv": (right * kl(target, far)).mean(),
            "kl": ((1 - right) * kl(clean, near)).mean(),
            "mse": self.beta * F.mse_loss(far.softmax(dim=1), near.softmax(dim=1)),
        }


def swapped(logits: Tensor, y: Tensor) -> Tensor:
    """The logits, (B, C), with that of the true class y, (B,), and the largest one exchanged."""
    true, top = y[:, None], logits.argmax(dim=1, keepdim=True)
    return logits.scatter(1, top, logits.gather(1, true)).scatter(1, true, logits.gather(1, top))


METHOD = Dgad
