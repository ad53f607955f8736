"""Indirect gradient distillation (IGDM): a term that any other method, the base, can be given.

From the paper: logit differences along d = x~ - x expose the input gradient of networks that are
locally linear; the weight grows over the epochs; alpha = 5 is its value for AdaAD and ResNet-18 on
CIFAR-10 (ARD 5, IAD 50, AKD 7, RSLAD 0.9, TRADES 20, PGD-AT 60). From the code, VLM_Distillation's
copy at 2b7ef6ed1e: x - d is not clipped, epochs count from 1 (its ramp always divides by 200), and
the student sees x~ once for the base and once for the term, so BatchNorm counts it twice.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

import methods
from methods.base import Batch, Method, Net, Nets, Paper, hp, kl
from methods.recipes import FREE_START, sgd


@dataclass(frozen=True)
class Igdm(Method):
    """L_base + alpha (epoch / epochs) KL(T(x~) - T(x - d) || S(x~) - S(x - d)), d = x~ - x.

    x~: the base's. epoch counts from 1.
    """

    formula = r"""
        L &= L_{\mathrm{base}}
          + \alpha\,\frac{\mathrm{epoch}}{\mathrm{epochs}}\,
          \mathrm{KL}(T(\tilde{x}) - T(x - d)\,\|\,S(\tilde{x}) - S(x - d)) \\
        d &= \tilde{x} - x
    """
    paper = Paper(
        "Lee, Cho and Kim",
        "Indirect Gradient Matching for Adversarial Robust Distillation",
        "ICLR",
        2025,
        "https://arxiv.org/abs/2312.03286",
    )
    recipe = (*sgd(200, 0.5, 0.75, weight_decay=2e-4), *FREE_START)

    base: str = hp("adaad", "the method given the term, at its defaults; it must attack")
    alpha: float = hp(
        5.0, "weight of the term at the end of training", low=0.2, high=220.0, log=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        usable = self.base in methods.names() and not isinstance(self.base_method, Igdm)
        if not usable or not self.base_method.adversarial:
            choice = "choose another method that has an attack, such as adaad or rslad"
            raise ValueError(f"base = {self.base!r}: {choice}")

    @cached_property
    def base_method(self) -> Method:
        """The method that is given the term."""
        return methods.load(self.base)()

    @property
    def teacher_roles(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys((*self.base_method.teacher_roles, "robust")))

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return self.base_method.build(student, teachers, num_train)

    def param_groups(self, nets: Nets) -> list[dict[str, Any]]:
        return self.base_method.param_groups(nets)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return self.base_method.attack(nets, batch)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        terms = self.base_method.loss(nets, batch, adv)
        target_adv, logits_adv = nets.teacher_logits_at(adv), nets.student(adv)
        term = gradient_kl(nets, batch, adv, target_adv, logits_adv).mean()
        return {**terms, "igdm": self.alpha * batch.progress * term}

    def after_step(self, nets: Nets, batch: Batch) -> None:
        self.base_method.after_step(nets, batch)

    def monitor(self, nets: Nets) -> dict[str, Tensor]:
        return self.base_method.monitor(nets)


def gradient_kl(nets: Nets, batch: Batch, adv: Tensor, target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(T(x~) - T(x - d) || S(x~) - S(x - d)), (B,), from both logits at x~."""
    # x - d, which is not clipped to [0, 1]: the differences are along one line.
    behind = 2 * batch.x - adv
    return kl(target - nets.teacher_logits_at(behind), logits - nets.student(behind))


METHOD = Igdm
