"""Methods in part: what several have in common, and what may stand around any other. None is a method by itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import methods
from methods.base import Batch, Method, Net, Nets, hp, kl, quirk, trust
from methods.inner import ce, mode, pgd


@dataclass(frozen=True)
class Introspective(Method):
    """What IAD and AdaIAD share: everything but the attack and the teacher's target."""

    beta: float = hp(
        0.1, "exponent of the teacher's reliability; 0 trusts the teacher fully", low=0.0, high=1.0
    )
    tau: float = hp(1.0, "temperature", low=1.0, high=30.0, log=True, above=0.0)
    begin: float = hp(
        0.0, "share of the epochs with the teacher alone", low=0.0, high=0.5, most=1.0, official=0.3
    )
    detach: bool = hp(False, "stop the gradient through the self target S(x)")
    trust_all: bool = quirk(False, True, "the teacher's term is not multiplied by a_i")
    plain_self: bool = quirk(False, True, "no temperature in the self term")

    def introspect(
        self, nets: Nets, batch: Batch, adv: Tensor, target: Tensor, at_adv: Tensor
    ) -> dict[str, Tensor]:
        """The loss for the teacher's target and its logits at the adversarial images, (B, C) each."""
        a = trust(at_adv, batch.y) ** (self.beta if batch.reached(self.begin) else 0.0)
        far, own = nets.student(adv), nets.student(batch.x)
        own, tau = own.detach() if self.detach else own, 1.0 if self.plain_self else self.tau
        return {
            "kl_teacher": self.tau**2
            * ((1 if self.trust_all else a) * kl(target, far, self.tau)).mean(),
            "kl_self": tau**2 * ((1 - a) * kl(own, far, tau)).mean(),
        }


class TwoTeachers(Method):
    """What MTARD, B-MTARD and CIARD share: a robust teacher for attacked images, a natural one for clean ones; inner CE."""

    requires = ("robust", "natural")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, start="gauss")


class LearningTeacher(Method):
    """A copy of the robust teacher, the part "teacher", that learns on beside the student, as in CIARD."""

    # declared by who inherits, so that they stand in the order of its own
    begin: float
    teacher_rate: float
    train_mode_teacher: bool

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"teacher": copy.deepcopy(teachers["robust"]).requires_grad_()}

    def groups(self, nets: Nets) -> list[dict[str, Any]]:
        slow = {"momentum": 0.1, "weight_decay": 2e-4, "scale": self.teacher_rate}
        return [
            {"params": [*nets.student.parameters()]},
            {"params": [*nets.parts.parameters()], **slow},
        ]

    def learner(self, nets: Nets, adv: Tensor) -> Tensor:
        """The copy's logits, (B, C), with their gradient."""
        with mode(nets.parts["teacher"], self.train_mode_teacher):
            logits: Tensor = nets.parts["teacher"](adv)
        return logits

    def lesson(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        """The copy's own term for its logits, (B, C), from a share of the epochs on."""
        return {"teacher_ce": F.cross_entropy(logits, batch.y)} if batch.reached(self.begin) else {}


@dataclass(frozen=True)
class Around(Method):
    """Another method, the base, at its defaults and with its attack: a term that is added to it extends `loss`."""

    base: str  # the base's name; who inherits gives the default

    def __post_init__(self) -> None:
        super().__post_init__()
        if (
            self.base not in methods.names()
            or isinstance(self.plain, Around)
            or not self.plain.adversarial
        ):
            raise ValueError(
                f"base = {self.base!r}: choose another method with an attack, such as adaad or rslad"
            )

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
