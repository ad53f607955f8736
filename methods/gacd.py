"""Guided adversarial contrastive distillation (GACD), a reconstruction.

Paper: Bai, Chen, Zhao, Wen, Jiang and Kot, "Feature Distillation With Guided Adversarial Contrastive Learning",
arXiv 2009.09922, 2020. Only its abstract could be read. Certain from it: robustness is transferred through features; the
objective is contrastive and tied to mutual information; the teacher is the anchor; "sample reweighted estimation" takes
away the harm of the teacher's mistakes. Everything else is an assumption, marked A1 to A8 on the switch that changes it:
the critic is CRD's (methods/contrast.py), the weight is the teacher's trust in the true label, and a cross-entropy on
adversarial images trains the classifier, because contrast alone ignores the scale of the logits. lambda_con is 0.2 and
not CRD's 0.8, which on validation images crowds the classifier of a small student out (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Method, Net, Nets, hp, kl
from methods.contrast import Contrast
from methods.inner import Objective, ce, pgd


@dataclass(frozen=True)
class Gacd(Method):
    """lambda_ce CE(S(x~), y) + lambda_con mean_i w_i l_i + lambda_kd tau_kd^2 KL(T(u) || S(v)).

    l_i: contrastive loss of anchor i; w_i = p_T(y_i | u_i)^beta scaled to mean 1; u, v: what teacher and student see.
    """

    student_input: str = hp("adv", "A1: what the student embeds", choices=("adv", "clean", "both"))
    teacher_input: str = hp("clean", "A2: what the teacher embeds", choices=("clean", "adv"))
    dim: int = hp(128, "A4: size of the projected feature", low=32, high=256, log=True)
    attack: str = hp("ce", "A5: what the inner attack maximises", choices=("ce", "feature"))
    estimator: str = hp("nce", "A6: form of the critic", choices=("nce", "infonce"))
    bank: int = hp(0, "A6: past embeddings to draw negatives from; 0: this batch", low=0, high=16384)
    tau: float = hp(0.07, "A6: temperature of the critic", low=0.05, high=0.5, log=True)
    symmetric: bool = hp(True, "A6: add the student-anchored direction")
    weight: str = hp("prob", "A7: sample weight; none: the ablation", choices=("prob", "indicator", "none"))
    beta: float = hp(1.0, "A7: exponent of the weight", low=0.1, high=2.0, log=True)
    weigh: str = hp("all", "A7: what the weight multiplies", choices=("all", "positive"))
    lambda_ce: float = hp(1.0, "A8: weight of the cross-entropy", low=0.1, high=2.0, log=True)
    lambda_con: float = hp(
        0.2,
        "A8: weight of the contrast",
        low=0.05,
        high=2.0,
        log=True,
    )
    lambda_kd: float = hp(0.0, "A8: weight of the soft labels", low=0.0, high=1.0)
    tau_kd: float = hp(4.0, "A8: temperature of the soft labels", low=1.0, high=20.0, log=True)
    two_stage: bool = hp(False, "A8: half the epochs contrast alone, then the classifier on frozen features")

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        width = teachers["robust"].width
        return {"contrast": Contrast(student.width, width, self.dim, self.tau, self.estimator, self.bank)}

    def loss(self, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        student, teacher = nets.student, nets.teacher
        contrasting, classifying = self._stage(batch)
        if self.attack == "ce" and classifying:
            adv = pgd(student, batch.x, ce(batch.y), batch.budget)
        else:  # also in the first of two stages: its classifier is untrained
            adv = pgd(student, batch.x, self._away(nets, batch.x), batch.budget, start="gauss")
        with torch.no_grad():
            f_t = teacher.features(adv if self.teacher_input == "adv" else batch.x)
            target = teacher.head(f_t)
        f_adv = student.features(adv)
        f_clean = student.features(batch.x) if self.student_input != "adv" else f_adv
        seen = {"adv": [f_adv], "clean": [f_clean], "both": [f_adv, f_clean]}[self.student_input]

        terms = {}
        if contrasting:
            w = self._weights(target, batch.y)
            terms["contrast"] = self.lambda_con * self._contrast(nets, f_t, seen, batch.y, w)
        if classifying:
            f_adv, seen = (f_adv, seen) if contrasting else (f_adv.detach(), [f.detach() for f in seen])
            terms["ce_adv"] = self.lambda_ce * F.cross_entropy(student.head(f_adv), batch.y)
            if self.lambda_kd:
                soft = torch.stack([kl(target, student.head(f), self.tau_kd).mean() for f in seen]).mean()
                terms["kl"] = self.lambda_kd * self.tau_kd**2 * soft
        return terms

    def _stage(self, batch: Batch) -> tuple[bool, bool]:
        """Whether this epoch trains the features by contrast, and whether it trains the classifier."""
        if not self.two_stage:
            return True, True
        first = batch.epoch < batch.epochs / 2
        return first, not first

    def _away(self, nets: Nets, x: Tensor) -> Objective:
        """1 - cos between the student's embedding and the teacher's of the clean images x."""
        contrast: Contrast = nets.parts["contrast"]  # type: ignore[assignment]
        with torch.no_grad():
            anchor = contrast.embed_t(nets.teacher.features(x))
        return lambda net, adv: (1 - (contrast.embed_s(net.features(adv)) * anchor).sum(dim=1)).sum()  # type: ignore[operator]

    def _weights(self, target: Tensor, y: Tensor) -> Tensor:
        """(B, C) teacher logits, (B,) labels -> (B,) weights of mean 1, or all 0 if no indicator is set."""
        if self.weight == "none":
            return torch.ones_like(target[:, 0])
        w = target.softmax(dim=1).gather(1, y[:, None]).squeeze(1) ** self.beta
        if self.weight == "indicator":
            w = (target.argmax(dim=1) == y).float()
        return w / w.mean().clamp(min=1e-6)

    def _contrast(self, nets: Nets, f_t: Tensor, seen: list[Tensor], y: Tensor, w: Tensor) -> Tensor:
        losses = []
        for f_s in seen:
            positive, negative = nets.parts["contrast"](f_t, f_s, y, self.symmetric)
            losses.append((w * positive + (w if self.weigh == "all" else 1.0) * negative).mean())
        return torch.stack(losses).mean()


METHOD = Gacd
