"""Learnable boundary guided adversarial training (LBGAT): a natural network learnt alongside.

The student's logits at x~ follow those of a network that is trained on clean images at the same
time. Code: dvlab-research/LBGAT at f7f33f0ea7. From it: the formula, in which gradients of the
squared error reach the natural network too; TRADES' attack, with its start and in eval mode; the
order of the passes; one optimiser for both. beta is 6 in LBGAT6, 0 in LBGAT0. Assumed: the natural
network is built as the student is (there a ResNet-18 beside a WideResNet). Step and radius are the
suite's (the authors: 0.007 and 0.031).
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Method, Net, Nets, Paper, hp, kl
from methods.inner import eval_logits, kl_to, pgd
from methods.peeraid import copy_untrained
from methods.recipes import FREE_START, sgd


@dataclass(frozen=True)
class Lbgat(Method):
    """MSE(S(x~), N(x)) + CE(N(x), y) + beta KL(S(x) || S(x~)), N: a natural network learnt too.

    MSE of logits: the mean over images and classes. x~ = argmax KL(S(x) || S(x~)).
    """

    formula = r"""
        L &= \mathrm{MSE}(S(\tilde{x}), N(x)) + \mathrm{CE}(N(x), y)
          + \beta\,\mathrm{KL}(S(x)\,\|\,S(\tilde{x})) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(S(x)\,\|\,S(x'))
    """
    paper = Paper(
        "Cui, Liu, Wang and Jia",
        "Learnable Boundary Guided Adversarial Training",
        "ICCV",
        2021,
        "https://arxiv.org/abs/2011.11164",
    )
    teacher_roles = ()
    recipe = (
        *sgd(
            100,
            *(0.75, 0.9),
            weight_decay=2e-4,
            why={
                "epochs": "half of this benchmark's long suites",
                "milestones": "two falls, later than usual",
            },
        ),
        *FREE_START,
    )
    unlike_script = ("The first epoch has a rate of 0.02.",)
    epoch_dependent = False

    beta: float = hp(6.0, "weight of the robust term", low=0.0, high=12.0)

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"natural": copy_untrained(student)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        target = eval_logits(nets.student, batch.x)
        return pgd(nets.student, batch.x, kl_to(target), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        logits_adv, logits_nat = nets.student(adv), nets.student(batch.x)
        natural = nets.parts["natural"](batch.x)
        return {
            "mse": F.mse_loss(logits_adv, natural),
            "natural_ce": F.cross_entropy(natural, batch.y),
            "kl_adv": self.beta * kl(logits_nat, logits_adv).mean(),
        }


METHOD = Lbgat
