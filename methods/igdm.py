"""Indirect gradient distillation (IGDM): a term that any other method can be given.

Paper: Lee, Cho and Kim, "Indirect Gradient Matching for Adversarial Robust Distillation", ICLR 2025. From it: logit
differences along d = x~ - x expose the input gradient of networks that are locally linear; the weight grows over the
epochs; alpha = 5 is its value for AdaAD and ResNet-18 on CIFAR-10 (ARD 5, IAD 50, AKD 7, RSLAD 0.9, TRADES 20, PGD-AT 60).
x - d is not clipped, as in the code: VLM_Distillation's copy at 2b7ef6ed1e, whose ramp always divides by 200 epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

import methods
from methods.base import Batch, Method, Net, Nets, hp
from methods.gradients import gap
from methods.recipes import LIGHT


@dataclass(frozen=True)
class Igdm(Method):
    """L_base + alpha (epoch / epochs) KL(T(x~) - T(x - d) || S(x~) - S(x - d)), d = x~ - x; x~ is the base's."""

    recipe = LIGHT

    base: str = hp("adaad", "the method that is given the term, at its defaults; any whose default attacks")
    alpha: float = hp(5.0, "weight of the term at the end of training", low=0.5, high=100.0, log=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base == "igdm" or self.base not in methods.names() or not self.plain.adversarial:
            raise ValueError(f"base = {self.base!r}: choose another method with an attack, such as adaad or rslad")

    @cached_property
    def plain(self) -> Method:
        """The base."""
        return methods.load(self.base)()

    @property
    def requires(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys((*self.plain.requires, "robust")))

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return self.plain.build(student, teachers, num_train)

    def groups(self, nets: Nets) -> list[dict[str, Any]]:
        return self.plain.groups(nets)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return self.plain.attack(nets, batch)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        terms = self.plain.loss(nets, batch, adv)
        target = nets.at(adv)
        weight = self.alpha * batch.epoch / batch.epochs
        return {**terms, "igdm": weight * gap(nets, 2 * batch.x - adv, target, nets.student(adv)).mean()}

    def after_step(self, nets: Nets, batch: Batch) -> None:
        self.plain.after_step(nets, batch)


METHOD = Igdm
