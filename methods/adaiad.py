"""Adaptive introspective adversarial distillation (AdaIAD): IAD-I at AdaAD's images.

Code: boyellow/AdaAD at 9e5c6e5ff7. From it: the teacher's target at x~, beta = 0.1. Its temperature
of 30 is a switch, for there it softens the teacher's term alone. The script's radius is AdaAD's.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.adaad import Adaad
from methods.base import Batch, Nets, hp, quirk
from methods.iad import Introspective
from methods.inner import kl_between, pgd, update_statistics


@dataclass(frozen=True)
class Adaiad(Introspective):
    """mean_i tau^2 [a_i KL(T(x~) || S(x~)) + (1 - a_i) KL(S(x) || S(x~))].

    x~ = argmax KL(T(x~) || S(x~)), not softened; a_i = p_T(y_i | x~_i)^beta; terms softened by tau.
    """

    formula = r"""
        L &= \frac{\tau^2}{B}\sum_i
          [a_i\,\mathrm{KL}(T(\tilde{x}_i)/\tau\,\|\,S(\tilde{x}_i)/\tau) \\
        &\quad + (1-a_i)\,\mathrm{KL}(S(x_i)/\tau\,\|\,S(\tilde{x}_i)/\tau)] \\
        a_i &= p_T(y_i \mid \tilde{x}_i)^\beta \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(T(x')\,\|\,S(x'))
    """
    paper = Adaad.paper
    recipe = Adaad.recipe
    tau: float = hp(1.0, "temperature", low=1.0, high=30.0, log=True, above=0.0, official=30.0)
    script_passes: bool = quirk(
        False, True, "BatchNorm sees x, x~ and x, and from `begin` on x a third time", later=True
    )

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, kl_between(nets.teacher), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.teacher_logits_at(adv)
        if self.script_passes:
            update_statistics(nets.student, batch.x)
        terms = self.introspective_loss(nets, batch, adv, target, target)
        # The self target and the cross-entropy, whose weight is 0, have a clean pass each there.
        if self.script_passes and batch.reached(self.begin):
            update_statistics(nets.student, batch.x)
        return terms


METHOD = Adaiad
