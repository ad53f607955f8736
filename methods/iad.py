"""Introspective adversarial distillation I (IAD-I).

As restated by RSLAD's Table 1: the teacher is trusted by its probability of the true class at x~,
the student's own clean prediction takes the rest; no warm-up. Code: ZFancy/IAD at a8091a8c75. From
it: beta = 0.1, tau = 1, the self target is not detached. Left out: unused forwards that move
BatchNorm.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl, quirk, true_class_probability
from methods.inner import ce, pgd
from methods.recipes import ONE_FALL_200_EPOCHS, RAW_PIXELS


@dataclass(frozen=True)
class Introspective(Method):
    """Base of IAD and AdaIAD, which add the attack and choose the teacher's target."""

    beta: float = hp(0.1, "exponent of the trust in the teacher; 0: full trust", low=0.0, high=1.0)
    tau: float = hp(1.0, "temperature", low=1.0, high=30.0, log=True, above=0.0)
    begin: float = hp(
        0.0, "share of epochs with the teacher alone", low=0.0, high=0.5, most=1.0, official=0.3
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
        # Exponent 0 trusts the teacher alone.
        exponent = self.beta if batch.reached(self.begin) else 0.0
        trust = true_class_probability(teacher_adv, batch.y) ** exponent
        logits_adv, logits_nat = nets.student(adv), nets.student(batch.x)
        if self.detach:
            logits_nat = logits_nat.detach()
        tau_self = 1.0 if self.plain_self else self.tau
        kl_teacher = kl(target, logits_adv, self.tau)
        if not self.trust_all:
            kl_teacher = trust * kl_teacher
        kl_self = (1 - trust) * kl(logits_nat, logits_adv, tau_self)
        return {
            "kl_teacher": self.tau**2 * kl_teacher.mean(),
            "kl_self": tau_self**2 * kl_self.mean(),
        }


@dataclass(frozen=True)
class Iad(Introspective):
    """mean_i tau^2 [a_i KL(T(x) || S(x~)) + (1 - a_i) KL(S(x) || S(x~))].

    a_i = p_T(y_i | x~_i)^beta; inner CE. Both terms are softened by tau.
    """

    formula = r"""
        L &= \frac{\tau^2}{B}\sum_i [a_i\,\mathrm{KL}(T(x_i)/\tau\,\|\,S(\tilde{x}_i)/\tau) \\
        &\quad + (1-a_i)\,\mathrm{KL}(S(x_i)/\tau\,\|\,S(\tilde{x}_i)/\tau)] \\
        a_i &= p_T(y_i \mid \tilde{x}_i)^\beta \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Zhu et al.",
        "Reliable Adversarial Distillation with Unreliable Teachers",
        "ICLR",
        2022,
        "https://arxiv.org/abs/2106.04928",
    )
    recipe = (*ONE_FALL_200_EPOCHS, *RAW_PIXELS)
    unlike_script = ("BatchNorm sees x~ and x once more each, in passes of no weight.",)

    train_mode_attack: bool = quirk(False, True, "BatchNorm's statistics move in the attack")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, train=self.train_mode_attack)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target_nat, target_adv = nets.teacher_logits(batch), nets.teacher_logits_at(adv)
        return self.introspective_loss(nets, batch, adv, target_nat, target_adv)


METHOD = Iad
