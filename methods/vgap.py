"""Distillation by a smaller student-teacher variance gap, a reconstruction.

The full text could not be read. From its abstract: the distributions of the features of student
and teacher are aligned on adversarial and on clean images; for a robust network the accuracy under
attack falls as the gap between the variance of features on both widens; aligning covariances
should close the gap, and aligning Gram matrices does so too.

All else is assumed. B1: added to RSLAD, whose student sees both kinds of images anyway. B2: Gram
matrices of the penultimate features, B x B, because those of covariances differ in size where the
widths differ; of centred features both have the same eigenvalues, which are the variances. B3: both
Gram matrices of a network are divided by its variance on clean images, so that neither width nor
scale counts and the gap between x~ and x does. B4: both networks at the same images. B5: the
squared Frobenius distance, both kinds of images alike, weighed by beta.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl
from methods.inner import at_least_float32, kl_to, pgd


@dataclass(frozen=True)
class Vgap(Method):
    """RSLAD + beta [|K_S(x) - K_T(x)|^2 + |K_S(x~) - K_T(x~)|^2], x~ = argmax KL(T(x) || S(x~)).

    RSLAD: (1 - alpha) KL(T(x) || S(x)) + alpha KL(T(x) || S(x~)). K_N(v) = F F^T / V: F, (B,
    width), features of network N at v less their mean over the batch; V: sum of squares of F at x.
    """

    formula = r"""
        L &= (1-\alpha)\,\mathrm{KL}(T(x)\,\|\,S(x))
          + \alpha\,\mathrm{KL}(T(x)\,\|\,S(\tilde{x}))
          + \beta \sum_{v \in \{x, \tilde{x}\}} \|K_S(v) - K_T(v)\|_F^2 \\
        K_N(v) &= F_N(v) F_N(v)^\top / \|F_N(x)\|_F^2,
          \quad F_N(v)_i = f_N(v_i) - \frac{1}{B}\sum_j f_N(v_j) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(T(x)\,\|\,S(x'))
    """
    paper = Paper(
        "Dong, Koniusz, Chen and Ong",
        "Adversarially Robust Distillation by Reducing the Student-Teacher Variance Gap",
        "ECCV",
        2024,
        "https://www.ecva.net/papers/eccv_2024/papers_ECCV/html/499_ECCV_2024_paper.php",
    )
    epoch_dependent = False

    alpha: float = hp(5 / 6, "B1: share of the adversarial term", low=0.5, high=1.0, most=1.0)
    beta: float = hp(1.0, "B5: weight of the Gram matrices", low=0.1, high=100.0, log=True)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        objective = kl_to(nets.teacher_logits(batch))
        return pgd(nets.student, batch.x, objective, batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        student, teacher = nets.student, nets.teacher
        features_adv, features_nat = student.features(adv), student.features(batch.x)
        with torch.no_grad():
            anchor_adv, anchor_nat = teacher.features(adv), teacher.features(batch.x)
        target = nets.teacher_logits(batch)
        # Every device compares all devices' images.
        gram_adv, gram_nat = scaled_grams(batch.gather(features_adv), batch.gather(features_nat))
        target_adv, target_nat = scaled_grams(batch.gather(anchor_adv), batch.gather(anchor_nat))
        return {
            "kl_adv": self.alpha * kl(target, student.head(features_adv)).mean(),
            "kl": (1 - self.alpha) * kl(target, student.head(features_nat)).mean(),
            "gram_adv": self.beta * (gram_adv - target_adv).square().sum(),
            "gram": self.beta * (gram_nat - target_nat).square().sum(),
        }


def scaled_grams(features_adv: Tensor, features_nat: Tensor) -> tuple[Tensor, Tensor]:
    """Return both Gram matrices, (B, B), over the clean variance, from features (B, width)."""
    # In full precision also under autocast, which would multiply the matrices in bf16.
    with torch.autocast(features_adv.device.type, enabled=False):
        centred_adv, centred_nat = (
            at_least_float32(features) - at_least_float32(features).mean(dim=0)
            for features in (features_adv, features_nat)
        )
        variance = centred_nat.square().sum().clamp(min=1e-12)
        return centred_adv @ centred_adv.T / variance, centred_nat @ centred_nat.T / variance


METHOD = Vgap
