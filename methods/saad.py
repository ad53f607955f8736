"""Sample-wise adaptive adversarial distillation (SAAD; SAAD-C with beta > 0).

From the paper: images on which the teacher is sure are weighed down by its entropy; AdaAD's inner
problem is linearised, so a step costs one teacher backward and not ten; alpha = 1 and beta = 0.2
for CIFAR-10. Code: HongsinLee/saad at 295121c5d2; from it: the slope's factor 1. Assumed: the
entropy of the clean term's weight is normalised by log C.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.adaptive import softmax_entropy
from methods.base import Batch, Gather, Method, Nets, Paper, hp, kl, own_rows, quirk
from methods.igdm import gradient_kl
from methods.inner import Objective, pgd, update_statistics
from methods.recipes import FREE_START, RAW_PIXELS, average_from, sgd


@dataclass(frozen=True)
class Saad(Method):
    """mean_i H_i [KL(T(x~) || S(x~)) + alpha IGDM_i]
    + beta mean_i (1 - H_i / log C) KL(T(x) || S(x)), H: T's entropy at x~.

    IGDM_i, or D_i: IGDM's term, with d = x~ - x. x~ = argmax KL(T_lin(x~) || S(x~)); T_lin: T(x),
    its true-class logit, along e_y, moved by `slope` times its gradient's product with d.
    """

    formula = r"""
        L &= \frac{1}{B}\sum_i H_i
          [\mathrm{KL}(T(\tilde{x}_i)\,\|\,S(\tilde{x}_i)) + \alpha D_i] \\
        &\quad + \frac{\beta}{B}\sum_i (1 - H_i / \log\, C)\,\mathrm{KL}(T(x_i)\,\|\,S(x_i)) \\
        D_i &= \mathrm{KL}(T(\tilde{x}_i) - T(x_i - d_i)\,\|\,S(\tilde{x}_i) - S(x_i - d_i)),
          \quad d_i = \tilde{x}_i - x_i \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(T_{\mathrm{lin}}(x')\,\|\,S(x')) \\
        T_{\mathrm{lin}}(x') &= T(x) + \mathrm{slope}\,\langle
          \nabla_x T_y(x), x' - x \rangle\, e_y
    """
    paper = Paper(
        "Lee and Chung",
        "Sample-wise Adaptive Weighting for Transfer Consistency in Adversarial Distillation",
        "arXiv",
        2025,
        "https://arxiv.org/abs/2512.10275",
    )
    recipe = (
        *sgd(200, 0.5, 0.75, weight_decay=2e-4),
        *FREE_START,
        *RAW_PIXELS,
        # The 95th epoch is the first that is averaged.
        *average_from(94 / 200),
    )

    alpha: float = hp(1.0, "weight of IGDM's term (CIFAR-100: 20)", low=0.1, high=30.0, log=True)
    beta: float = hp(0.0, "weight of the clean term; SAAD-C: 0.2", low=0.0, high=1.0)
    slope: float = hp(1.0, "factor of the linear correction", low=0.1, high=2.0, log=True)
    shifted: bool = quirk(False, True, "weights are 5 (H_i - min H), clean ones in [0, 1]")
    ramp: bool = quirk(False, True, "alpha grows linearly over the epochs, as in IGDM")
    script_passes: bool = quirk(
        False, True, "with beta = 0 BatchNorm sees x too, after x~ and x - d", later=True
    )

    @property
    def epoch_dependent(self) -> bool:  # type: ignore[override]
        return self.ramp

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        objective = kl_to_linearised(nets.teacher, batch, self.slope)
        return pgd(nets.student, batch.x, objective, batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.teacher_logits_at(adv)
        w_adv, w_nat = self.entropy_weights(target, batch.gather)
        alpha = self.alpha * (batch.progress if self.ramp else 1.0)
        logits_adv = nets.student(adv)
        gradient_term = gradient_kl(nets, batch, adv, target, logits_adv)
        terms = {
            "kl_adv": (w_adv * kl(target, logits_adv)).mean(),
            "igdm": alpha * (w_adv * gradient_term).mean(),
        }
        if self.beta:
            kl_nat = w_nat * kl(nets.teacher_logits(batch), nets.student(batch.x))
            terms["kl"] = self.beta * kl_nat.mean()
        elif self.script_passes:
            update_statistics(nets.student, batch.x)
        return terms

    def entropy_weights(self, target: Tensor, gather: Gather = own_rows) -> tuple[Tensor, Tensor]:
        """Return weights of the adversarial and the clean terms, (B,), from T's logits, (B, C)."""
        entropy = softmax_entropy(target)
        if self.shifted:
            lowest, highest = gather(entropy).aminmax()
            above_min = entropy - lowest
            return 5 * above_min, 1 - above_min / (highest - lowest).clamp(min=1e-6)
        return entropy, 1 - entropy / math.log(target.shape[1])


def kl_to_linearised(teacher: nn.Module, batch: Batch, factor: float) -> Objective:
    """KL(T_lin(adv) || S(adv)), T_lin: T(x) + factor <grad T_y(x), adv - x> at the true class."""
    x = batch.x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = teacher(x)
        (slope,) = torch.autograd.grad(logits.gather(1, batch.y[:, None]).sum(), x)
    true_class = torch.zeros_like(logits).scatter(1, batch.y[:, None], 1.0)

    def divergence(net: nn.Module, adv: Tensor) -> Tensor:
        rise = factor * (slope * (adv - batch.x)).flatten(1).sum(dim=1, keepdim=True)
        return kl(logits.detach() + rise * true_class, net(adv)).sum()

    return divergence


METHOD = Saad
