"""Anti-bias soft label distillation (ABSLD): RSLAD with a temperature for each class.

Code: zhaoshiji123/ABSLD at 7407c3ad22. From it: the rate 0.1, the bounds 0.5 and 5, the rule after
each epoch, the attack on the softened labels. The script compares the classes' sums of the
cross-entropy, here it is their means, which do not depend on how many images a class has: equal
for balanced classes alone (`class_sums`). By sums the rarest classes look easy and a class that
never occurs easiest of all: it gets softer labels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.adaptive import ClassMeans, rate_decay
from methods.base import Batch, Method, Net, Nets, Paper, hp, kl, kl_reduction, kl_scale, quirk
from methods.inner import at_least_float32, kl_to, pgd
from methods.recipes import THREE_FALLS_300_EPOCHS


class ClassTemperatures(ClassMeans):
    """Temperatures from 0.5 to 5, (2, C): for clean images and for adversarial examples."""

    tau: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, 2)
        self.register_buffer("tau", torch.ones(2, num_classes))

    @torch.no_grad()
    def add_losses(self, logits_nat: Tensor, logits_adv: Tensor, y: Tensor) -> None:
        """Add the cross-entropies of the student's logits of the whole batch, (B, C) each."""
        ce_nat = F.cross_entropy(at_least_float32(logits_nat), y, reduction="none")
        ce_adv = F.cross_entropy(at_least_float32(logits_adv), y, reduction="none")
        self.add(torch.stack([ce_nat, ce_adv]), y)

    def update(self, means: Tensor, strength: float) -> None:
        """Give classes of a higher loss sharper labels. means: (2, C) cross-entropies."""
        gap = means - means.mean(dim=1, keepdim=True)
        largest = gap.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        self.tau.sub_(strength * gap / largest).clamp_(0.5, 5)


@dataclass(frozen=True)
class Absld(Method):
    """(1 - alpha) KL(T(x) / t_c || S(x)) + alpha KL(T(x) / u_c || S(x~)), c = y.

    x~ = argmax KL(T(x) / u_c || S(x~)). After each epoch t_c falls by rate * g_c / max |g|, g_c:
    the class's cross-entropy above the mean of the classes; so u_c.
    """

    formula = r"""
        L &= (1-\alpha)\,\mathrm{KL}(T(x)/t_y\,\|\,S(x))
          + \alpha\,\mathrm{KL}(T(x)/u_y\,\|\,S(\tilde{x})) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(T(x)/u_y\,\|\,S(x')) \\
        t_c &\leftarrow t_c - \mathrm{rate}\, g_c / \max_k \lvert g_k \rvert
    """
    paper = Paper(
        "Zhao, Wang and Wei",
        "Improving Adversarial Robust Fairness via Anti-Bias Soft Label Distillation",
        "NeurIPS",
        2024,
        "https://arxiv.org/abs/2312.05508",
    )
    recipe = THREE_FALLS_300_EPOCHS

    alpha: float = hp(5 / 6, "share of the adversarial term", low=0.5, high=1.0, most=1.0)
    rate: float = hp(0.1, "step of the temperatures; 0: RSLAD", low=0.0, high=0.5)
    aliased: bool = quirk(False, True, "each target is divided by both temperatures")
    reduction: str = kl_reduction("tenth")
    class_sums: bool = quirk(
        False,
        True,
        "g_c is of the class's sum: rare classes look easy and get softer labels",
        later=True,
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"classes": ClassTemperatures(student.num_classes)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        target = nets.teacher_logits(batch) / self.temperatures(nets, batch)[1]
        return pgd(nets.student, batch.x, kl_to(target), batch.budget, start="gauss")

    def temperatures(self, nets: Nets, batch: Batch) -> Tensor:
        """Return those of each image's class, (2, B, 1)."""
        classes: ClassTemperatures = nets.parts["classes"]  # type: ignore[assignment]
        classes.begin_step(batch, self.rate * rate_decay(batch), self.class_sums)
        tau = classes.tau[:, batch.y, None]
        # In the script both targets share a tensor.
        return tau.prod(dim=0).expand_as(tau) if self.aliased else tau

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        tau_nat, tau_adv = self.temperatures(nets, batch)
        logits_adv, logits_nat = nets.student(adv), nets.student(batch.x)
        measured = (logits_nat.detach(), logits_adv.detach(), batch.y)
        nets.parts["classes"].add_losses(*map(batch.gather, measured))  # type: ignore[operator]
        target = nets.teacher_logits(batch)
        weight = kl_scale(self.reduction, target.shape[1])
        return {
            "kl_adv": weight * self.alpha * kl(target / tau_adv, logits_adv).mean(),
            "kl": weight * (1 - self.alpha) * kl(target / tau_nat, logits_nat).mean(),
        }


METHOD = Absld
