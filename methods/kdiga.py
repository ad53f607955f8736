"""KD with input gradient alignment (KDIGA).

Code: RulinShao/AdversariallyRobustDistillation at 12e774f4b7. From it: alpha = gamma = 0.5, tau =
1; its second form, KDIGA-ARD, has both networks at x~ in the soft term. Assumed: a norm for each
image, averaged; the batch's statistics tie the student's gradients. The script has one norm, of the
mean loss's gradient, over the batch size, so its gamma is another.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl, kl_reduction, kl_scale
from methods.inner import at_least_float32, ce, pgd
from methods.recipes import ONE_FALL_200_EPOCHS


@dataclass(frozen=True)
class Kdiga(Method):
    """(1 - alpha) CE(S(x), y) + alpha tau^2 KL(T(v) || S(v))
    + gamma mean_i |grad_x CE(S(x_i), y_i) - grad_x CE(T(x_i), y_i)|.

    v: clean images, or x~ = argmax CE(S(x~), y). The soft term is softened by tau.
    """

    formula = r"""
        L &= (1-\alpha)\,\mathrm{CE}(S(x), y)
          + \alpha\tau^2\,\mathrm{KL}(T(v)/\tau\,\|\,S(v)/\tau) \\
        &\quad + \frac{\gamma}{B}\sum_i \|\nabla_x \mathrm{CE}(S(x_i), y_i)
          - \nabla_x \mathrm{CE}(T(x_i), y_i)\|_2 \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Shao et al.",
        "How and When Adversarial Robustness Transfers in Knowledge Distillation?",
        "arXiv",
        2021,
        "https://arxiv.org/abs/2110.12072",
    )
    recipe = ONE_FALL_200_EPOCHS
    epoch_dependent = False

    alpha: float = hp(0.5, "share of the soft term", low=0.0, high=1.0, most=1.0)
    gamma: float = hp(0.5, "weight of the gradients", low=0.05, high=50.0, log=True)
    tau: float = hp(1.0, "temperature", low=1.0, high=30.0, log=True, above=0.0)
    inputs: str = hp("clean", "what the soft term sees; adv: KDIGA-ARD", choices=("clean", "adv"))
    reduction: str = kl_reduction("mean")

    @property
    def adversarial(self) -> bool:
        return self.inputs == "adv"

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        if not self.adversarial:
            return batch.x
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        x = batch.x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits_nat, target_nat = nets.student(x), nets.teacher(x)
            student_gradient = input_gradient(logits_nat, x, batch.y, differentiable=True)
            teacher_gradient = input_gradient(target_nat, x, batch.y, differentiable=False)
        distance = (student_gradient - teacher_gradient).flatten(1).norm(dim=1)
        target, logits = target_nat.detach(), logits_nat
        if self.adversarial:
            target, logits = nets.teacher_logits_at(adv), nets.student(adv)
        weight = self.alpha * self.tau**2 * kl_scale(self.reduction, target.shape[1])
        return {
            "ce": (1 - self.alpha) * F.cross_entropy(logits_nat, batch.y),
            "kl": weight * kl(target, logits, self.tau).mean(),
            "gradient": self.gamma * distance.mean(),
        }


def input_gradient(logits: Tensor, x: Tensor, y: Tensor, differentiable: bool) -> Tensor:
    """Return the summed cross-entropy's gradient for x, which gave the logits, shaped as x."""
    loss = F.cross_entropy(at_least_float32(logits), y, reduction="sum")
    # The graph is kept: the logits serve in the other terms of the loss too.
    (gradient,) = torch.autograd.grad(loss, x, create_graph=differentiable, retain_graph=True)
    return gradient


METHOD = Kdiga
