"""Cyclic iterative adversarial robustness distillation (CIARD).

Paper: Lu, Pang, Zheng, Gu, Du, Liu and Zhou, "CIARD: Cyclic Iterative Adversarial Robustness Distillation", ICCV
2025: away from the natural teacher's mistakes, while the robust teacher learns on. Code: eminentgu/CIARD at
93a9a2d9dc, the source of the formula: B-MTARD's temperatures, the push from the natural teacher where it is wrong at
x~ (the student softened by 5), both weights 1, the robust teacher trained from a sixth of the epochs with a
thousandth of the rate and momentum 0.1. Assumed: the teacher stays in eval mode; its rate follows the suite's. Left
out: the script's cosine and exponential schedule; that its temperatures stand still from the first milestone on.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from methods.adaptive import Uncertainty, decay, magnitude
from methods.base import Batch, Net, Nets, hp, kl, quirk, scale
from methods.forms import LearningTeacher, TwoTeachers
from methods.recipes import LIGHT, LONGER


@dataclass(frozen=True)
class Ciard(LearningTeacher, TwoTeachers):
    """KL(T(x~) / t || S(x~)) + KL(N(x) / u || S(x)) - m mean KL(N(x~) || S(x~) / 5) where N is wrong; inner CE.

    m: the power of ten that brings the push to the size of the smaller of the others; T: + CE(T(x~), y) after `begin`.
    """

    recipe = (*LONGER[:1], *LIGHT)

    rate: float = hp(0.001, "step of the temperatures", low=1e-4, high=0.1, log=True)
    push: float = hp(1.0, "factor of the push; 0: none", low=0.0, high=2.0)
    begin: float = hp(
        1 / 6, "share of the epochs before the robust teacher learns", low=0.0, high=1.0, most=1.0
    )
    teacher_rate: float = hp(
        0.001, "its learning rate, in those of the student", low=1e-4, high=0.1, log=True
    )
    train_mode_teacher: bool = quirk(
        False, True, "the robust teacher's BatchNorm statistics drift from the first batch"
    )
    reduction: str = quirk(
        "batchmean", "mean", "KL averaged over the classes too: a tenth of it on 10 classes"
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"uncertainty": Uncertainty(), **super().build(student, teachers, num_train)}

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        learner, natural = self.learner(nets, adv), nets.at(adv, "natural")
        soft = nets.parts["uncertainty"](learner, nets.clean(batch, "natural"))
        far, near = nets.student(adv), nets.student(batch.x)
        weight = scale(self.reduction, far.shape[1])
        terms = {
            "kl_robust": weight * kl(soft[0], far).mean(),
            "kl_natural": weight * kl(soft[1], near).mean(),
        }
        wrong = (natural.argmax(dim=1) != batch.y).float()
        away = weight * (wrong * kl(natural, far / 5)).sum() / wrong.sum().clamp(min=1)
        terms["push"] = -self.push * magnitude(*terms.values()) / magnitude(away) * away
        return {**terms, **self.lesson(batch, learner)}

    def after_step(self, nets: Nets, batch: Batch) -> None:
        nets.parts["uncertainty"].move(self.rate * decay(batch))  # type: ignore[operator]


METHOD = Ciard
