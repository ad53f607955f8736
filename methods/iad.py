"""Introspective adversarial distillation, first form (IAD-I).

Paper: Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers", ICLR 2022, in the form restated by RSLAD's
Table 1: the teacher is trusted by its probability of the true class on the student's adversarial image, the student's own
clean prediction takes the rest. Code: ZFancy/IAD at a8091a8c75; beta = 0.1, tau = 1 and the self target that is not
detached are from it; its unused forwards, which move BatchNorm, are left out. The restated formula has no warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl, quirk, trust
from methods.inner import ce, pgd
from methods.recipes import STUCK


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
class Iad(Introspective):
    """mean_i tau^2 [a_i KL(T(x) || S(x~)) + (1 - a_i) KL(S(x) || S(x~))], a_i = p_T(y_i | x~_i)^beta; inner CE."""

    recipe = STUCK

    train_mode_attack: bool = quirk(False, True, "BatchNorm's statistics move at each step of the attack")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, train=self.train_mode_attack)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        return self.introspect(nets, batch, adv, nets.clean(batch), nets.at(adv))


METHOD = Iad
