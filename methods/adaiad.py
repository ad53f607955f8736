"""Adaptive introspective adversarial distillation (AdaIAD): IAD-I at AdaAD's images.

Code: boyellow/AdaAD at 9e5c6e5ff7. From it: the teacher's target at x~, beta = 0.1. Its temperature
of 30 is a switch, for there it softens the teacher's term alone.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.adaad import Adaad
from methods.base import Batch, Nets, hp
from methods.iad import Introspective
from methods.inner import kl_between, pgd


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

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, kl_between(nets.teacher), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.teacher_logits_at(adv)
        return self.introspective_loss(nets, batch, adv, target, target)


METHOD = Adaiad
