"""Fair RSLAD: class weights from the number of steps that an attack needs.

Paper: Yue et al., "Revisiting Adversarial Robustness Distillation from the Perspective of Robust Fairness", NeurIPS
2023. Code: NISP-official/Fair-ARD at 910c8cd17b. From it: kappa_c, the mean number of attack steps at which images of
class c are still classified rightly; the square; the clamp to 5/6 and 5/2. kappa is counted in the training attack
itself. Left out: Nesterov momentum.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from methods.adaptive import ClassWeights
from methods.base import Batch, Method, Net, Nets, hp, kl, quirk, scale
from methods.inner import kl_to, pgd
from methods.recipes import LONGER


@dataclass(frozen=True)
class FairRslad(Method):
    """mean_i w_c(i) [(1 - alpha) KL(T(x) || S(x)) + alpha KL(T(x) || S(x~))], x~ = argmax KL(T(x) || S(x~)).

    w_c ~ kappa_c^-power, of mean 1, then clamped to 5/6 and 5/2; found in each epoch for the next.
    """

    recipe = LONGER

    alpha: float = hp(5 / 6, "share of the adversarial term", low=0.5, high=1.0, most=1.0)
    power: float = hp(2.0, "exponent of the class weights; 0: RSLAD", low=0.0, high=4.0, most=16.0)
    reduction: str = quirk(
        "batchmean", "mean", "KL averaged over the classes too: a tenth of it on 10 classes"
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"fair": ClassWeights(student.num_classes)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        fair: ClassWeights = nets.parts["fair"]  # type: ignore[assignment]
        fair.begin(batch, self.power)
        objective, survived = fair.counting(kl_to(nets.clean(batch)), batch.y)
        adv = pgd(nets.student, batch.x, objective, batch.budget, start="gauss")
        fair.add(survived[None], batch.y)
        return adv

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target, w = nets.clean(batch), nets.parts["fair"].get_buffer("weights")[batch.y]
        weight = scale(self.reduction, target.shape[1])
        return {
            "kl_adv": weight * self.alpha * (w * kl(target, nets.student(adv))).mean(),
            "kl": weight * (1 - self.alpha) * (w * kl(target, nets.student(batch.x))).mean(),
        }


METHOD = FairRslad
