"""Guided adversarial contrastive distillation (GACD), a reconstruction.

Paper: Bai, Chen, Zhao, Wen, Jiang and Kot, "Feature Distillation With Guided Adversarial Contrastive Learning",
arXiv 2009.09922, 2020. Only its abstract could be read. Certain from it: robustness is transferred through features; the
objective is contrastive and tied to mutual information; the teacher is the anchor; "sample reweighted estimation" takes
away the harm of the teacher's mistakes. Everything else is an assumption, A1 to A8 on the switch that changes it (A4,
the projection, and A6, the critic, on those that crd has too): the critic is CRD's, the weight is the teacher's trust
in the true label, and a cross-entropy on adversarial images trains the classifier, because contrast alone ignores the
scale of the logits. lambda_con is 0.2 and not CRD's 0.8, which crowds the classifier of a small student out
(docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Nets, hp, kl
from methods.contrast import away, weights
from methods.crd_adv import CrdAdv
from methods.inner import pgd


@dataclass(frozen=True)
class Gacd(CrdAdv):
    """lambda_ce CE(S(x~), y) + lambda_con mean_i w_i l_i + lambda_kd tau_kd^2 KL(T(u) || S(v)).

    l_i: contrastive loss of anchor i; w_i = p_T(y_i | u_i)^beta scaled to mean 1; u, v: what teacher and student see.
    """

    student_input: str = hp("adv", "A1: what the student embeds, v", choices=("adv", "clean", "both"))
    teacher_input: str = hp("clean", "A2: what the teacher embeds, u", choices=("clean", "adv"))
    inner: str = hp("ce", "A5: what the attack maximises", choices=("ce", "feature"))
    weight: str = hp("prob", "A7: sample weight; none: the ablation", choices=("prob", "indicator", "none"))
    beta: float = hp(1.0, "A7: exponent of the weight", low=0.1, high=2.0, log=True)
    weigh: str = hp("all", "A7: what the weight multiplies", choices=("all", "positive"))
    lambda_ce: float = hp(1.0, "A8: weight of the cross-entropy", low=0.1, high=2.0, log=True)
    lambda_kd: float = hp(0.0, "A8: weight of the soft labels", low=0.0, high=1.0)
    tau_kd: float = hp(4.0, "A8: temperature of the soft labels", low=1.0, high=20.0, log=True, above=0.0)
    two_stage: bool = hp(False, "A8: half the epochs contrast alone, then the classifier on frozen features")

    def stage(self, batch: Batch) -> tuple[bool, bool]:
        """Whether this epoch trains the features by contrast, and whether it trains the classifier."""
        first = batch.epoch < batch.epochs / 2
        return (first, not first) if self.two_stage else (True, True)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        if self.inner == "ce" and self.stage(batch)[1]:
            return super().attack(nets, batch)
        return pgd(nets.student, batch.x, away(nets, batch.x), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        student, (contrasting, classifying) = nets.student, self.stage(batch)
        with torch.no_grad():
            anchor = nets.teacher.features(adv if self.teacher_input == "adv" else batch.x)
            target = nets.teacher.head(anchor)
        far = student.features(adv)
        near = student.features(batch.x) if self.student_input != "adv" else far
        seen = {"adv": [far], "clean": [near], "both": [far, near]}[self.student_input]
        terms = {}
        if contrasting:
            w = weights(self.weight, self.beta, target, batch.y)
            losses = []
            for found in seen:
                positive, negative = nets.parts["contrast"](anchor, found, batch.y, self.symmetric)
                losses.append((w * positive + (w if self.weigh == "all" else 1.0) * negative).mean())
            terms["contrast"] = self.lambda_con * torch.stack(losses).mean()
        if classifying:
            far, seen = (far, seen) if contrasting else (far.detach(), [found.detach() for found in seen])
            terms["ce_adv"] = self.lambda_ce * F.cross_entropy(student.head(far), batch.y)
            if self.lambda_kd:
                soft = torch.stack([kl(target, student.head(found), self.tau_kd).mean() for found in seen]).mean()
                terms["kl"] = self.lambda_kd * self.tau_kd**2 * soft
        return terms


METHOD = Gacd
