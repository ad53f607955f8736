"""Anti-bias soft label distillation (ABSLD): RSLAD with a temperature of the teacher for each class.

Paper: Zhao, Wang and Wei, "Improving Adversarial Robust Fairness via Anti-Bias Soft Label Distillation", NeurIPS
2024. Code: zhaoshiji123/ABSLD at 7407c3ad22. From it: the rate 0.1, the bounds 0.5 and 5, the rule after each epoch,
the attack on the softened labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from methods.adaptive import ClassTemperatures
from methods.base import Batch, Method, Net, Nets, hp, kl, quirk, scale
from methods.inner import kl_to, pgd
from methods.recipes import LONGER


@dataclass(frozen=True)
class Absld(Method):
    """(1 - alpha) KL(T(x) / t_c || S(x)) + alpha KL(T(x) / u_c || S(x~)), c = y; x~ = argmax KL(T(x) / u_c || S(x~)).

    After each epoch t_c falls by rate * g_c / max |g|, g_c: the class's cross-entropy above the mean of the classes; so u_c.
    """

    recipe = LONGER

    alpha: float = hp(5 / 6, "share of the adversarial term", low=0.5, high=1.0, most=1.0)
    rate: float = hp(0.1, "step of the temperatures; 0: RSLAD", low=0.0, high=0.5)
    aliased: bool = quirk(
        False, True, "both targets share a tensor, so each is divided by both temperatures"
    )
    reduction: str = quirk(
        "batchmean", "tenth", "a tenth of the KL, a smaller loss against the weight decay"
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"classes": ClassTemperatures(student.num_classes)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        target = nets.clean(batch) / self.temperatures(nets, batch)[1]
        return pgd(nets.student, batch.x, kl_to(target), batch.budget, start="gauss")

    def temperatures(self, nets: Nets, batch: Batch) -> Tensor:
        """Those of each image's class, (2, B, 1): for clean images and for attacked ones."""
        classes: ClassTemperatures = nets.parts["classes"]  # type: ignore[assignment]
        tau = classes.of(batch, self.rate)
        return tau.prod(dim=0).expand_as(tau) if self.aliased else tau

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        tau = self.temperatures(nets, batch)
        far, near, target = nets.student(adv), nets.student(batch.x), nets.clean(batch)
        nets.parts["classes"].observe(near, far, batch.y)  # type: ignore[operator]
        weight = scale(self.reduction, target.shape[1])
        return {
            "kl_adv": weight * self.alpha * kl(target / tau[1], far).mean(),
            "kl": weight * (1 - self.alpha) * kl(target / tau[0], near).mean(),
        }


METHOD = Absld
