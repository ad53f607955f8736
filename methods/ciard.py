"""Cyclic iterative adversarial robustness distillation (CIARD).

Away from the natural teacher's mistakes, while the robust teacher learns on. Code: eminentgu/CIARD
at 93a9a2d9dc. From it: the formula with both weights 1, B-MTARD's temperatures, S softened by 5 in
the push, T trained from a sixth of the epochs at a thousandth of the rate with momentum 0.1. There
the student's clean pass comes before the attack, whose network in eval mode thus has other running
statistics: about a third of the pixels end elsewhere (`script_passes`).
Assumed: T stays in eval mode; its rate follows the suite's.
"""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.adaptive import TeacherTemperatures, rate_decay
from methods.base import Batch, Method, Net, Nets, Paper, hp, kl, kl_reduction, kl_scale, quirk
from methods.inner import ce, mode, pgd, still_statistics
from methods.recipes import FREE_START, sgd


@dataclass(frozen=True)
class Ciard(Method):
    """KL(T(x~) / t || S(x~)) + KL(N(x) / u || S(x)) - push m D; inner CE.

    D: mean KL(N(x~) || S(x~) / 5) over W, the images where N is wrong at x~. m: the power of ten
    that brings D to the size of the smaller term. t, u: as in B-MTARD. T learns L_T = CE(T(x~), y)
    too, after `begin`.
    """

    formula = r"""
        L &= \mathrm{KL}(T(\tilde{x})/t\,\|\,S(\tilde{x})) + \mathrm{KL}(N(x)/u\,\|\,S(x))
          - \mathrm{push}\cdot m D \\
        D &= \frac{1}{|W|}\sum_{i \in W} \mathrm{KL}(N(\tilde{x}_i)\,\|\,S(\tilde{x}_i)/5) \\
        L_T &= \mathrm{CE}(T(\tilde{x}), y) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Lu, Pang, Zheng, Gu, Du, Liu and Zhou",
        "CIARD: Cyclic Iterative Adversarial Robustness Distillation",
        "ICCV",
        2025,
        "https://arxiv.org/abs/2509.12633",
    )
    teacher_roles = ("robust", "natural")
    recipe = (
        *sgd(
            300,
            0.5,
            weight_decay=2e-4,
            schedule="cosine",
            why={"milestones": "the cosine begins there"},
        ),
        *FREE_START,
    )
    unlike_script = (
        "The cosine has a further factor, which falls from 1 to 0.99.",
        "The temperatures stop at the first milestone.",
    )

    rate: float = hp(0.001, "step of the temperatures", low=1e-4, high=0.1, log=True)
    push: float = hp(1.0, "factor of the push; 0: none", low=0.0, high=2.0)
    begin: float = hp(
        1 / 6, "share of epochs before the robust teacher learns", low=0.0, high=1.0, most=1.0
    )
    teacher_rate: float = hp(
        0.001, "the robust teacher's learning rate over the student's", low=1e-4, high=0.1, log=True
    )
    train_mode_teacher: bool = quirk(
        False, True, "the robust teacher's BatchNorm drifts from the start"
    )
    reduction: str = kl_reduction("mean")
    script_passes: bool = quirk(
        False,
        True,
        "student and robust teacher see x before the attack, which BatchNorm changes",
        later=True,
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        learner = copy.deepcopy(teachers["robust"]).requires_grad_()
        return {"uncertainty": TeacherTemperatures(), "teacher": learner}

    def param_groups(self, nets: Nets) -> list[dict[str, Any]]:
        options = {"momentum": 0.1, "weight_decay": 2e-4, "scale": self.teacher_rate}
        teacher = {"params": [*nets.parts.parameters()], **options}
        return [{"params": [*nets.student.parameters()]}, teacher]

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        if self.script_passes:
            # For running statistics alone: `loss` makes the pass again, for the gradient.
            with torch.no_grad(), mode(nets.parts["teacher"], self.train_mode_teacher):
                nets.student(batch.x)
                nets.parts["teacher"](batch.x)
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        with mode(nets.parts["teacher"], self.train_mode_teacher):
            robust_adv = nets.parts["teacher"](adv)
        natural_adv = nets.teacher_logits_at(adv, "natural")
        natural = nets.teacher_logits(batch, "natural")
        target_robust, target_natural = nets.parts["uncertainty"](robust_adv, natural, batch.gather)
        logits_adv = nets.student(adv)
        with still_statistics(nets.student) if self.script_passes else nullcontext():
            logits_nat = nets.student(batch.x)
        weight = kl_scale(self.reduction, logits_adv.shape[1])
        terms = {
            "kl_robust": weight * kl(target_robust, logits_adv).mean(),
            "kl_natural": weight * kl(target_natural, logits_nat).mean(),
        }
        wrong = (natural_adv.argmax(dim=1) != batch.y).float()
        distance = (wrong * kl(natural_adv, logits_adv / 5)).sum()
        # Not min=1: of several devices' mean number, one image is less. Without any, D is 0.
        distance = weight * distance / batch.mean(wrong.sum()).clamp(min=1e-6)
        sizes = batch.mean(torch.stack([*terms.values(), distance]).detach())
        target_size, size = power_of_ten(sizes[:-1]), power_of_ten(sizes[-1:])
        terms["push"] = -self.push * target_size / size * distance
        if batch.reached(self.begin):
            terms["teacher_ce"] = F.cross_entropy(robust_adv, batch.y)
        return terms

    def after_step(self, nets: Nets, batch: Batch) -> None:
        nets.parts["uncertainty"].move(self.rate * rate_decay(batch))  # type: ignore[operator]


def power_of_ten(values: Tensor) -> Tensor:
    """Return the power of ten not above the smallest of positive values."""
    return 10 ** values.min().clamp(min=1e-6).log10().floor()


METHOD = Ciard
