"""Indirect gradient distillation (IGDM): a term that any other method can be given.

Paper: Lee, Cho and Kim, "Indirect Gradient Matching for Adversarial Robust Distillation", ICLR 2025. From it: logit
differences along d = x~ - x expose the input gradient of networks that are locally linear; the weight grows over the
epochs; alpha = 5 is its value for AdaAD and ResNet-18 on CIFAR-10 (ARD 5, IAD 50, AKD 7, RSLAD 0.9, TRADES 20, PGD-AT 60).
x - d is not clipped and epochs count from 1, as in the code: VLM_Distillation's copy at 2b7ef6ed1e, whose ramp always
divides by 200. As there, the student sees x~ once for the base and once for the term, so BatchNorm counts it twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Nets, hp
from methods.forms import Around
from methods.gradients import gap
from methods.recipes import LIGHT


@dataclass(frozen=True)
class Igdm(Around):
    """L_base + alpha (epoch / epochs) KL(T(x~) - T(x - d) || S(x~) - S(x - d)), d = x~ - x; x~ is the base's."""

    recipe = LIGHT

    base: str = hp(
        "adaad", "the method that is given the term, at its defaults; any whose default attacks"
    )
    alpha: float = hp(
        5.0, "weight of the term at the end of training", low=0.2, high=220.0, log=True
    )

    @property
    def requires(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys((*super().requires, "robust")))

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        terms = super().loss(nets, batch, adv)
        weight = self.alpha * batch.progress
        term = gap(nets, 2 * batch.x - adv, nets.at(adv), nets.student(adv)).mean()
        return {**terms, "igdm": weight * term}


METHOD = Igdm
