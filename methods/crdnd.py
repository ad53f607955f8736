"""Contrastive relationship denoise distillation (CRDND).

The paper was read in a third party's reproduction, report and code (SZU-AdvTech-2023/098 at
7eb0b79). No script of the authors is known: `--official` follows this one. From it: logits,
cosines, the temperature 0.5, lambda = 0.2, no labels. Assumed: a class's accuracy is measured in
the batch; the attack is RSLAD's (the reproduction: a CW margin). The loss ignores the scale of the
logits, which invites gradient masking: published PGD-20 is 10 points above AutoAttack.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, quirk
from methods.inner import at_least_float32, kl_to, pgd
from methods.recipes import FREE_START, sgd


@dataclass(frozen=True)
class Crdnd(Method):
    """lambda NTXent(M S(x), T(x)) + (1 - lambda) NTXent(M' S(x~), T(x~)).

    x~ = argmax KL(T(x) || S(x~)). M: a_c on the diagonal, (1 - a_c) / (C - 1) else; a_c: the
    teacher's accuracy on class c at x; M': the same at x~; lambda: `clean_share`. NTXent: the
    contrast of cosines / tau.
    """

    formula = r"""
        L &= \lambda\,\mathrm{NTXent}(M S(x), T(x))
          + (1-\lambda)\,\mathrm{NTXent}(M' S(\tilde{x}), T(\tilde{x})) \\
        M_{cc} &= a_c, \quad M_{kc} = (1 - a_c) / (C - 1) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(T(x)\,\|\,S(x'))
    """
    paper = Paper(
        "Wang et al.",
        "Adversarial Contrastive Distillation with Adaptive Denoising",
        "ICASSP",
        2023,
        "https://arxiv.org/abs/2302.08764",
    )
    recipe = (*sgd(300, 0.0, weight_decay=2e-4, schedule="cosine"), *FREE_START)
    unlike_script = ("The reproduction attacks with a CW margin.",)
    epoch_dependent = False

    clean_share: float = hp(0.2, "lambda, share of the clean term", low=0.0, high=1.0, most=1.0)
    tau: float = hp(0.5, "temperature of the cosines", low=0.05, high=1.0, log=True, above=0.0)
    denoise: bool = quirk(True, False, "the reproduction never applies the matrix")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        objective = kl_to(nets.teacher_logits(batch))
        return pgd(nets.student, batch.x, objective, batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target_adv, target_nat = nets.teacher_logits_at(adv), nets.teacher_logits(batch)
        logits_adv, logits_nat = nets.student(adv), nets.student(batch.x)
        # Every device contrasts all devices' images.
        gather, y = batch.gather, batch.gather(batch.y)
        adv_term = self.contrast(gather(logits_adv), gather(target_adv), y)
        nat_term = self.contrast(gather(logits_nat), gather(target_nat), y)
        adv_term, nat_term = (1 - self.clean_share) * adv_term, self.clean_share * nat_term
        return {"contrast_adv": adv_term, "contrast": nat_term}

    def contrast(self, logits: Tensor, target: Tensor, y: Tensor) -> Tensor:
        """Return NT-Xent of the student's denoised logits and the teacher's, (B, C) each."""
        if self.denoise:
            logits = logits @ denoising_matrix(target, y).T.to(logits.dtype)
        return nt_xent(logits, target, self.tau)


def nt_xent(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """Return the mean over 2 B anchors; rows i of a and b, (B, D), attract by their cosine."""
    views = F.normalize(at_least_float32(torch.cat([a, b])), dim=1)
    # No view is its own positive or negative.
    scores = (views @ views.T / tau).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(len(views), device=a.device).roll(len(a)))


def denoising_matrix(target: Tensor, y: Tensor) -> Tensor:
    """Return M, (C, C), from the teacher's logits, (B, C). Columns sum to 1."""
    classes = target.shape[1]
    hit = (target.argmax(dim=1) == y).to(at_least_float32(target))
    zeros = torch.zeros(classes, dtype=hit.dtype, device=y.device)
    count, hits = zeros.index_add(0, y, torch.ones_like(hit)), zeros.index_add(0, y, hit)
    # A class without images is left as it is.
    accuracy = torch.where(count > 0, hits / count.clamp(min=1), 1.0)
    rest = ((1 - accuracy) / max(classes - 1, 1)).expand(classes, classes)
    diagonal = torch.eye(classes, dtype=torch.bool, device=y.device)
    return torch.where(diagonal, accuracy, rest)


METHOD = Crdnd
