"""Methods in part: what several have in common, and what may stand around any other. None is a method by itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

import methods
from methods.base import Batch, Method, Net, Nets, hp, kl, quirk, trust


@dataclass(frozen=True)
class Introspective(Method):
    """What IAD and AdaIAD share: everything but the attack and the teacher's target."""

    beta: float = hp(0.1, "exponent of the teacher's reliability; 0 trusts the teacher fully", low=0.0, high=1.0)
    tau: float = hp(1.0, "temperature", low=1.0, high=30.0, log=True, above=0.0)
    begin: float = hp(0.0, "share of the epochs with the teacher alone", low=0.0, high=0.5, most=1.0, official=0.3)
    detach: bool = hp(False, "stop the gradient through the self target S(x)")
    trust_all: bool = quirk(False, True, "the teacher's term is not multiplied by a_i")
    plain_self: bool = quirk(False, True, "no temperature in the self term")

    def introspect(self, nets: Nets, batch: Batch, adv: Tensor, target: Tensor, at_adv: Tensor) -> dict[str, Tensor]:
        """The loss for the teacher's target and its logits at the adversarial images, (B, C) each."""
        begun = batch.epoch >= self.begin * batch.epochs
        a = trust(at_adv, batch.y) ** (self.beta if begun else 0.0)
        far, own = nets.student(adv), nets.student(batch.x)
        own, tau = own.detach() if self.detach else own, 1.0 if self.plain_self else self.tau
        return {
            "kl_teacher": self.tau**2 * ((1 if self.trust_all else a) * kl(target, far, self.tau)).mean(),
            "kl_self": tau**2 * ((1 - a) * kl(own, far, tau)).mean(),
        }


@dataclass(frozen=True)
class Around(Method):
    """Another method, the base, at its defaults and with its attack: a term that is added to it extends `loss`."""

    base: str  # the base's name; who inherits gives the default

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base not in methods.names() or isinstance(self.plain, Around) or not self.plain.adversarial:
            raise ValueError(f"base = {self.base!r}: choose another method with an attack, such as adaad or rslad")

    @cached_property
    def plain(self) -> Method:
        """The base."""
        return methods.load(self.base)()

    @property
    def requires(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.plain.requires

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return self.plain.build(student, teachers, num_train)

    def groups(self, nets: Nets) -> list[dict[str, Any]]:
        return self.plain.groups(nets)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return self.plain.attack(nets, batch)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        return self.plain.loss(nets, batch, adv)

    def after_step(self, nets: Nets, batch: Batch) -> None:
        self.plain.after_step(nets, batch)
