"""Adversarial contrastive distillation with adaptive denoising (CRDND).

Paper: Wang et al., "Adversarial Contrastive Distillation with Adaptive Denoising", ICASSP 2023, read in a reproduction
report (SZU-AdvTech-2023/098 at 7eb0b79). From it: logits, cosines, the temperature 0.5, lambda = 0.2, no labels.
Assumed: a class's accuracy is measured in the batch; the attack is RSLAD's (the
reproduction: a CW margin). The loss ignores the scale of the logits, which
invites gradient masking: published PGD-20 is 10 points above AutoAttack.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Method, Nets, hp, quirk
from methods.contrast import confusion, nt_xent
from methods.inner import kl_to, pgd
from methods.recipes import LIGHT


@dataclass(frozen=True)
class Crdnd(Method):
    """lambda NTXent(M S(x), T(x)) + (1 - lambda) NTXent(M' S(x~), T(x~)), x~ = argmax KL(T(x) || S(x~)).

    M: a_c on the diagonal, (1 - a_c) / (C - 1) else; a_c: the teacher's accuracy on class c at these images.
    """

    recipe = (("epochs", 300, "half as long again"), *LIGHT)

    clean_share: float = hp(0.2, "lambda, share of the clean term", low=0.0, high=1.0, most=1.0)
    tau: float = hp(0.5, "temperature of the cosines", low=0.05, high=1.0, log=True, above=0.0)
    denoise: bool = quirk(True, False, "the reproduction never applies the matrix")

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, kl_to(nets.clean(batch)), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.at(adv)
        far, near = nets.student(adv), nets.student(batch.x)
        return {
            "contrast_adv": (1 - self.clean_share) * self.contrast(far, target, batch.y),
            "contrast": self.clean_share * self.contrast(near, nets.clean(batch), batch.y),
        }

    def contrast(self, logits: Tensor, target: Tensor, y: Tensor) -> Tensor:
        """NT-Xent of the student's corrected logits and the teacher's, (B, C) each."""
        corrected = logits @ confusion(target, y).T.to(logits.dtype) if self.denoise else logits
        return nt_xent(corrected, target, self.tau)


METHOD = Crdnd
