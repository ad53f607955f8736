"""Guided adversarial contrastive distillation (GACD), a reconstruction.

Paper: Bai, Chen, Zhao, Wen, Jiang and Kot, "Feature Distillation With Guided Adversarial Contrastive Learning", arXiv
2009.09922, 2020. Only its abstract could be read. Certain from it: robustness is transferred through features; the
objective is contrastive and tied to mutual information; the teacher is the anchor; "sample reweighted estimation" takes
away the harm of its mistakes. All else is assumed, A1 to A8 on the switch that changes it (A4, the projection, and A6, the
critic, on those that crd has too): CRD's critic, the teacher's trust in the true label as the weight, and a cross-entropy
on adversarial images for the classifier, because contrast alone ignores the scale of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Nets, hp
from methods.contrast import guided, see, soft, stages, turned, weights
from methods.crd_adv import CrdAdv


@dataclass(frozen=True)
class Gacd(CrdAdv):
    """lambda_ce CE(S(x~), y) + lambda_con mean_i w_i l_i + lambda_kd tau_kd^2 KL(T(u) || S(v)).

    l_i: contrastive loss of anchor i; w_i = p_T(y_i | u_i)^beta scaled to mean 1; u, v: what teacher and student see.
    """

    student_input: str = hp(
        "adv", "A1: what the student embeds, v", choices=("adv", "clean", "both")
    )
    teacher_input: str = hp("clean", "A2: what the teacher embeds, u", choices=("clean", "adv"))
    inner: str = hp("ce", "A5: what the attack maximises", choices=("ce", "feature"))
    weight: str = hp(
        "prob", "A7: sample weight; none: the ablation", choices=("prob", "indicator", "none")
    )
    beta: float = hp(1.0, "A7: exponent of the weight", low=0.1, high=2.0, log=True)
    weigh: str = hp("all", "A7: what the weight multiplies", choices=("all", "positive"))
    lambda_ce: float = hp(1.0, "A8: weight of the cross-entropy", low=0.1, high=2.0, log=True)
    lambda_kd: float = hp(0.0, "A8: weight of the soft labels", low=0.0, high=1.0)
    tau_kd: float = hp(
        4.0, "A8: temperature of the soft labels", low=1.0, high=20.0, log=True, above=0.0
    )
    two_stage: bool = hp(
        False, "A8: half the epochs contrast alone, then the classifier on frozen features"
    )

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        _, classifying = stages(batch, self.two_stage)
        return (
            super().attack(nets, batch)
            if self.inner == "ce" and classifying
            else turned(nets, batch)
        )

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        contrasting, classifying = stages(batch, self.two_stage)
        seen = see(nets, batch.x, adv, self.teacher_input, self.student_input, learn=contrasting)
        terms = {}
        if contrasting:
            w = weights(self.weight, self.beta, seen.target, batch.y)
            terms["contrast"] = self.lambda_con * guided(
                nets, seen, batch.y, w, self.symmetric, self.weigh
            )
        if classifying:
            terms["ce_adv"] = self.lambda_ce * F.cross_entropy(nets.student.head(seen.far), batch.y)
            if self.lambda_kd:
                terms["kl"] = self.lambda_kd * self.tau_kd**2 * soft(nets, seen, self.tau_kd)
        return terms


METHOD = Gacd
