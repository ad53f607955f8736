"""Distillation by the generalised Kullback-Leibler divergence (GKL).

The KL divergence splits into a weighted mean squared error (wMSE) of logit differences and a soft
cross-entropy (sCE). GKL weighs the first by class and not by image. Code: jiequancui/DKL, DKLv2 at
c5e8ad2. From its adversarial training: the prior with its temperature tau, which softens nothing
else there; one sum of the weights for the whole batch; alpha; the attack on sCE alone, in eval mode
from Gaussian noise; the adversarial forward before the clean one. From its distillation: the
teacher's logits as the target and, with them, as the source of the prior.

Assumed: both together, the teacher at x, the student at x~; that the cross-entropy of clean images
stays; beta, which is 20 in both: at the rate of `digits` a student far from its teacher diverges
with it. A class that never occurs in an epoch keeps its row of the prior (there it becomes NaN).
Left out: the radius that grows from 0 over the epochs, with 2 to 5 steps (here the suite's attack);
the distillation's temperature 4 in sCE and its growth of the weights over 20 of 240 epochs; AWP of
0.005, which is `--awp`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.adaptive import ClassMeans
from methods.base import Batch, Gather, Method, Net, Nets, Paper, hp, own_rows
from methods.inner import at_least_float32, kl_to, pgd


class ClassPrior(ClassMeans):
    """q, (C, C): mean softened probabilities of each class's images in the last epoch, by rows."""

    prior: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, num_classes)
        self.register_buffer("prior", torch.full((num_classes, num_classes), 1 / num_classes))

    @torch.no_grad()
    def add_logits(self, logits: Tensor, y: Tensor, tau: float) -> None:
        """Add the softened probabilities of the whole batch's clean logits, (B, C)."""
        self.add((at_least_float32(logits) / tau).softmax(dim=1).T, y)

    def end_epoch(self, strength: float, class_sums: bool) -> None:
        """Replace the rows of the classes that occurred."""
        means = (self.sums / self.counts).T
        self.prior.copy_(torch.where(self.counts[:, None] > 0, means, self.prior))


@dataclass(frozen=True)
class Gkl(Method):
    """CE(S(x), y) + alpha sCE(T(x), S(x~)) + beta wMSE(T(x), S(x~)), x~ = argmax sCE(T(x), S(x~)).

    sCE(t, s) = mean_i -sum_c softmax(t_i)_c log softmax(s_i)_c, whose target passes no gradient.
    wMSE(t, s) = 1/4 sum_i sum_ab w_iab [(t_ia - t_ib) - (s_ia - s_ib)]^2 / sum_i sum_ab w_iab,
    w_iab = (q_ya q_yb)^gamma, y = y_i; a, b: classes. q: by class, mean softmax(T(x) / tau) of the
    last epoch, uniform in the first.
    """

    formula = r"""
        L &= \mathrm{CE}(S(x), y) + \alpha\,\mathrm{sCE}(T(x), S(\tilde{x}))
          + \beta\,\mathrm{wMSE}(T(x), S(\tilde{x})) \\
        \mathrm{sCE}(t, s) &= -\frac{1}{B}\sum_i\sum_c \mathrm{softmax}(t_i)_c
          \log \mathrm{softmax}(s_i)_c \\
        \mathrm{wMSE}(t, s) &= \frac{\sum_i\sum_{a,b} w_{iab}
          [(t_{ia} - t_{ib}) - (s_{ia} - s_{ib})]^2}{4\sum_i\sum_{a,b} w_{iab}},
          \quad w_{iab} = (q_{y_i a}\, q_{y_i b})^\gamma \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{sCE}(T(x), S(x'))
    """
    paper = Paper(
        "Cui, Tian, Zhong, Qi, Yu and Zhang",
        "Decoupled Kullback-Leibler Divergence Loss",
        "NeurIPS",
        2024,
        "https://arxiv.org/abs/2305.13948",
    )

    alpha: float = hp(4.0, "weight of the soft cross-entropy", low=0.5, high=10.0, log=True)
    beta: float = hp(1.0, "weight of the squared error; 0: none", low=0.0, high=40.0)
    gamma: float = hp(1.0, "exponent of the prior; 0: all pairs alike", low=0.0, high=2.0)
    tau: float = hp(
        4.0,
        "temperature of the prior; the script has 1 with gamma 0.2",
        low=1.0,
        high=10.0,
        log=True,
        above=0.0,
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"classes": ClassPrior(student.num_classes)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        self.class_prior(nets, batch)
        # sCE and KL have the same gradient, because the target is fixed.
        objective = kl_to(nets.teacher_logits(batch))
        return pgd(nets.student, batch.x, objective, batch.budget, start="gauss")

    def class_prior(self, nets: Nets, batch: Batch) -> ClassPrior:
        """Return the part, with the prior of this epoch."""
        classes: ClassPrior = nets.parts["classes"]  # type: ignore[assignment]
        classes.begin_step(batch)
        return classes

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        logits_adv, logits_nat = nets.student(adv), nets.student(batch.x)
        return self.terms(nets, batch, nets.teacher_logits(batch), logits_nat, logits_adv)

    def terms(
        self, nets: Nets, batch: Batch, target: Tensor, logits_nat: Tensor, logits_adv: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss's terms for a target, (B, C), which the prior learns from too."""
        classes = self.class_prior(nets, batch)
        # Copies: a step adds to the sums, and the next epoch overwrites the prior.
        weights = classes.prior[batch.y].to(target.dtype) ** self.gamma
        classes.add_logits(batch.gather(target.detach()), batch.gather(batch.y), self.tau)
        return {
            "ce": F.cross_entropy(logits_nat, batch.y),
            "soft_ce": self.alpha * soft_ce(target.detach(), logits_adv),
            "wmse": self.beta * weighted_mse(target, logits_adv, weights, batch.gather),
        }


def soft_ce(target: Tensor, logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits with the softmax of others, (B, C) each."""
    probabilities = at_least_float32(target).softmax(dim=1)
    return -(probabilities * at_least_float32(logits).log_softmax(dim=1)).sum(dim=1).mean()


def weighted_mse(
    target: Tensor, logits: Tensor, weights: Tensor, gather: Gather = own_rows
) -> Tensor:
    """Return wMSE from the factors of the weights, w_iab = weights_ia weights_ib: (B, C) each.

    The sum of the weights is that of the whole batch.
    """
    gap = at_least_float32(target) - at_least_float32(logits)
    total = weights.sum(dim=1, keepdim=True)
    # sum_ab w_a w_b (g_a - g_b)^2 = 2 W sum_a w_a (g_a - mean)^2, with W = sum_a w_a and the
    # weighted mean: no B x C x C tensor, which 100 classes would fill.
    mean = (weights * gap).sum(dim=1, keepdim=True) / total
    spread = total * (weights * (gap - mean) ** 2).sum(dim=1, keepdim=True)
    squares = gather((total**2).sum()[None])
    return spread.sum() / (2 * squares.mean())


METHOD = Gkl
