"""Dynamic guidance adversarial distillation (DGAD).

Images that the teacher gets wrong already when clean are learnt clean, and its wrong outputs are
put right. Code: kunsaram01/DGAD at a0329c8605. From it: AdaAD's attack, the swap of the two logits,
beta = 1. Left out: a misplaced parenthesis for MobileNetV2, which halves a product.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl, quirk
from methods.inner import both_logits, kl_between, pgd
from methods.recipes import TWO_FALLS_200_EPOCHS


@dataclass(frozen=True)
class Dgad(Method):
    """mean_i [g_i KL(T'(x~) || S(x~)) + (1 - g_i) KL(T'(x) || S(x))] + beta MSE(p_S(x~), p_S(x)).

    g_i: 1 where T is right at x, else 0. T': T with the logits of true and predicted class
    swapped; x~ = argmax KL(T(x~) || S(x~)).
    """

    formula = r"""
        L &= \frac{1}{B}\sum_i
          [g_i\,\mathrm{KL}(T'(\tilde{x}_i)\,\|\,S(\tilde{x}_i))
            + (1-g_i)\,\mathrm{KL}(T'(x_i)\,\|\,S(x_i))] \\
        &\quad + \beta\,\mathrm{MSE}(p_S(\tilde{x}), p_S(x)) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(T(x')\,\|\,S(x'))
    """
    paper = Paper(
        "Park and Min",
        "Dynamic Guidance Adversarial Distillation with Enhanced Teacher Knowledge",
        "ECCV",
        2024,
        "https://arxiv.org/abs/2409.01627",
    )
    recipe = TWO_FALLS_200_EPOCHS
    unlike_script = ("For MobileNetV2 a misplaced parenthesis halves a product.",)
    epoch_dependent = False

    beta: float = hp(1.0, "weight of the consistency of the student", low=0.0, high=10.0)
    swap: bool = hp(True, "put the teacher's wrong outputs right")
    script_passes: bool = quirk(
        False,
        True,
        "the student sees x before x~: BatchNorm's statistics end nearer to x~",
        later=True,
    )

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, kl_between(nets.teacher), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target_nat, target_adv = nets.teacher_logits(batch), nets.teacher_logits_at(adv)
        # Before the swap, after which the teacher is always right.
        right = (target_nat.argmax(dim=1) == batch.y).float()
        if self.swap:
            target_nat = swap_true_and_top(target_nat, batch.y)
            target_adv = swap_true_and_top(target_adv, batch.y)
        logits_adv, logits_nat = both_logits(
            nets.student, adv, batch.x, clean_first=self.script_passes
        )
        consistency = F.mse_loss(logits_adv.softmax(dim=1), logits_nat.softmax(dim=1))
        return {
            "kl_adv": (right * kl(target_adv, logits_adv)).mean(),
            "kl": ((1 - right) * kl(target_nat, logits_nat)).mean(),
            "mse": self.beta * consistency,
        }


def swap_true_and_top(logits: Tensor, y: Tensor) -> Tensor:
    """Exchange the logit of the true class and the largest one: (B, C), (B,) -> (B, C)."""
    true, top = y[:, None], logits.argmax(dim=1, keepdim=True)
    swapped = logits.scatter(1, top, logits.gather(1, true))
    return swapped.scatter(1, true, logits.gather(1, top))


METHOD = Dgad
