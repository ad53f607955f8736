"""Multi-teacher adversarial robustness distillation (MTARD): a robust teacher for attacked images, a natural one for clean.

Paper: Zhao et al., "Enhanced Accuracy and Robustness via Multi-Teacher Adversarial Distillation", ECCV 2022: the two weights
move so that the term which has fallen less gets more. Code: zhaoshiji123/MTARD at 6480a1b40d; the rates and the attack
(cross-entropy, Gaussian start) are from it. There the weights move before the step in which they count, here after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.adaptive import Balance, decay
from methods.base import Batch, Net, Nets, hp, kl, quirk, scale
from methods.forms import TwoTeachers
from methods.recipes import LONGER


@dataclass(frozen=True)
class Mtard(TwoTeachers):
    """w KL(T(x~) || S(x~)) + (1 - w) KL(N(x) || S(x)), N: the natural teacher; x~ = argmax CE(S(x~), y).

    r = (term / its first value)^gamma for both; after each step 1 - w moves by eta towards r_N / (r_T + r_N).
    """

    recipe = LONGER

    eta: float = hp(0.025, "rate of the weights", low=0.001, high=0.1, log=True, most=1.0)
    gamma: float = hp(1.0, "exponent of the relative losses", low=0.1, high=4.0, log=True)
    reduction: str = quirk(
        "batchmean", "tenth", "a tenth of the KL, a smaller loss against the weight decay"
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"balance": Balance()}

    def targets(self, nets: Nets, batch: Batch, adv: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the robust teacher at adv and of the natural one at x."""
        return nets.at(adv), nets.clean(batch, "natural")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        robust, natural = self.targets(nets, batch, adv)
        weight, balance = scale(self.reduction, robust.shape[1]), nets.parts["balance"]
        far = weight * kl(robust, nets.student(adv)).mean()
        near = weight * kl(natural, nets.student(batch.x)).mean()
        w = balance.observe(torch.stack([far, near]).detach())  # type: ignore[operator]
        return {"kl_robust": w[0] * far, "kl_natural": w[1] * near}

    def after_step(self, nets: Nets, batch: Batch) -> None:
        nets.parts["balance"].move(self.eta * decay(batch), self.gamma)  # type: ignore[operator]


METHOD = Mtard
