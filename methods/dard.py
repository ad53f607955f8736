"""Dice adversarial robustness distillation (DARD).

One target from a robust and a natural teacher, and an attack on the Dice loss (DPGD), which turns
from the images that are still right to those that are wrong. Code: zzzzjing/CAD at f16b222; that
it is the paper's is inferred from names and abstract. From it: the attack without a random start,
its squared Dice over the batch, its weights; alpha; both terms at x~.

There the probabilities of both teachers are stored once: the natural one's of the images as they
are, the robust one's of examples made against a third, naturally trained network, of augmented and
shuffled images, so that they belong to others. Here both are of the step's own images, and the
robust teacher sees the examples of this attack on itself. Assumed: that both probabilities are
averaged; the script takes softmax of that mean once more, `resoftened`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Method, Nets, Paper, hp, kl, quirk
from methods.inner import Objective, at_least_float32, pgd
from methods.recipes import LAST_BATCH

SMOOTHING = 1e-5


@dataclass(frozen=True)
class Dard(Method):
    """alpha KL((T(u) + N(x)) / 2 || S(x~)) + (1 - alpha) CE(S(x~), y), of probabilities.

    N: the natural teacher; x~, u: DPGD's examples for S and T. Its step i of n, from 0, ascends
    (1 - l) D(right) + l D(wrong), l = (i - 1) / 2n; D(M), M the images that are right or wrong at
    that step: 1 - (2 sum_M p_y + 1e-5) / (sum_M (sum_c p_c^2 + 1) + 1e-5).
    """

    formula = r"""
        L &= \alpha\,\mathrm{KL}(\tfrac{1}{2}(p_T(u) + p_N(x))\,\|\,p_S(\tilde{x}))
          + (1-\alpha)\,\mathrm{CE}(S(\tilde{x}), y) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \; (1 - l_i)\,D(\mathrm{right})
          + l_i\,D(\mathrm{wrong}), \quad l_i = \frac{i - 1}{2n} \\
        D(M) &= 1 - \frac{2\sum_{j \in M} p_S(y_j \mid x'_j) + 10^{-5}}
          {\sum_{j \in M} (1 + \sum_c p_S(c \mid x'_j)^2) + 10^{-5}}
    """
    paper = Paper(
        "Zou, Zhang, Qiu and Li",
        "DARD: Dice Adversarial Robustness Distillation against Adversarial Attacks",
        "arXiv",
        2025,
        "https://arxiv.org/abs/2509.11525",
    )
    teacher_roles = ("robust", "natural")
    recipe = (
        ("epochs", 100, "half of this benchmark's long suites"),
        ("schedule", "multistep", "as in the script"),
        ("milestones", (0.3, 0.4), "two falls before half of the training"),
        *LAST_BATCH,
    )
    epoch_dependent = False

    alpha: float = hp(0.7, "share of the soft labels", low=0.0, high=1.0, most=1.0)
    train_mode_attack: bool = quirk(False, True, "BatchNorm's statistics move in the attack")
    resoftened: bool = quirk(False, True, "softmax of the target once more, near uniform")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return self.dpgd(nets.student, batch, self.train_mode_attack)

    def dpgd(self, net: nn.Module, batch: Batch, train: bool = False) -> Tensor:
        """Return the attack's examples for any network."""
        objective = dice_objective(batch)
        return pgd(net, batch.x, objective, batch.budget, start="none", train=train)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        robust = nets.teacher_logits_at(self.dpgd(nets.teacher, batch))
        target = log_mean(robust, nets.teacher_logits(batch, "natural"))
        if self.resoftened:
            target = target.exp()
        logits_adv = nets.student(adv)
        return {
            "kl_adv": self.alpha * kl(target, logits_adv).mean(),
            "ce_adv": (1 - self.alpha) * F.cross_entropy(logits_adv, batch.y),
        }


def log_mean(first: Tensor, second: Tensor) -> Tensor:
    """Return the logarithm of the mean of two logits' probabilities, (B, C) each."""
    log_p = at_least_float32(first).log_softmax(dim=1)
    log_q = at_least_float32(second).log_softmax(dim=1)
    return torch.logaddexp(log_p, log_q) - math.log(2)


def dice_objective(batch: Batch) -> Objective:
    """Return DPGD's objective for one attack: each call is a step and shifts its weights."""
    call, y = -1, batch.gather(batch.y)

    def objective(net: nn.Module, adv: Tensor) -> Tensor:
        nonlocal call
        call += 1
        share = (call - 1) / (2 * batch.budget.steps)
        # The sums are those of the whole batch.
        p = batch.gather(at_least_float32(net(adv)).softmax(dim=1))
        right = (p.argmax(dim=1) == y).to(p.dtype)
        return (1 - share) * dice(p, y, right) + share * dice(p, y, 1 - right)

    return objective


def dice(p: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Return the Dice loss over the images of a mask, (B,), 0 without any: (B, C), (B,)."""
    overlap = (mask * p.gather(1, y[:, None]).squeeze(1)).sum()
    size = (mask * (p.square().sum(dim=1) + 1)).sum()
    return 1 - (2 * overlap + SMOOTHING) / (size + SMOOTHING)


METHOD = Dard
