"""Introspective distillation without its attack: the loss that IAD and AdaIAD share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl, quirk, true_class_probability


@dataclass(frozen=True)
class Introspective(Method):
    """Base of IAD and AdaIAD, which add the attack and choose the teacher's target."""

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

    @property
    def epoch_dependent(self) -> bool:  # type: ignore[override]
        return self.begin != 0

    def introspective_loss(
        self, nets: Nets, batch: Batch, adv: Tensor, target: Tensor, teacher_adv: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss for the teacher's target and its logits at `adv`, (B, C) each."""
        exponent = self.beta if batch.reached(self.begin) else 0.0
        reliability = true_class_probability(teacher_adv, batch.y) ** exponent
        logits_adv, logits_nat = nets.student(adv), nets.student(batch.x)
        if self.detach:
            logits_nat = logits_nat.detach()
        tau_self = 1.0 if self.plain_self else self.tau
        kl_teacher = kl(target, logits_adv, self.tau)
        if not self.trust_all:
            kl_teacher = reliability * kl_teacher
        kl_self = (1 - reliability) * kl(logits_nat, logits_adv, tau_self)
        return {
            "kl_teacher": self.tau**2 * kl_teacher.mean(),
            "kl_self": tau_self**2 * kl_self.mean(),
        }
