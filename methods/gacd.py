"""Guided adversarial contrastive distillation (GACD), a reconstruction.

The full text could not be read. From its abstract: robustness is transferred through features; the
objective is contrastive and tied to mutual information; the teacher is the anchor; "sample
reweighted estimation" takes away the harm of its mistakes.

From its overview figure, on an author's site: one image enters both networks; both features are
scaled to unit length; the anchor is the teacher's, the positive the student's of the same image,
the negatives the student's of others. So both see x~ by default and `symmetric` is off. Teacher on
clean images and both directions, this method's former default, are `--teacher-input clean
--symmetric`.

All else is assumed, A1 to A8 on the switch that changes it (A4, the projection, and A6, the critic,
on those that crd has too; A3 has no switch: the teacher is frozen, in eval mode). That the image is
adversarial is A1. The critic is CRD's, the weight is the teacher's probability of the true class,
and there is a cross-entropy at x~, because contrast alone ignores the scale of the logits. The
contrast weighs 0.2 and not CRD's 0.8, as in crd_adv.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Net, Nets, Paper, hp, kl, true_class_probability
from methods.contrast import CRITIC, Contrast
from methods.crd_adv import CrdAdv
from methods.inner import mode, pgd


class Statistics(nn.Module):
    """Scalars of the last step: of the sample weights and of the student's embeddings."""

    weight_mean: Tensor
    weight_spread: Tensor
    similarity: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight_mean", "weight_spread", "similarity"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def update(self, w: Tensor, embeddings: Tensor) -> None:
        """Measure a batch: weights before their scaling, (B,), unit embeddings, (B, dim)."""
        self.weight_mean.copy_(w.mean())
        self.weight_spread.copy_(w.std(correction=0) / w.mean().clamp(min=1e-6))
        # Of the B (B - 1) pairs of two images: all pairs but B of one image, each 1.
        size = len(embeddings)
        total = embeddings.sum(dim=0).square().sum()
        self.similarity.copy_((total - size) / max(size * (size - 1), 1))


@dataclass(frozen=True)
class Gacd(CrdAdv):
    """lambda_ce CE(S(x~), y) + lambda_con mean_i w_i l_i + lambda_kd tau_kd^2 KL(T(u) || S(v)).

    l_i: contrast of anchor i; w_i = p_T(y_i | u_i)^beta scaled to mean 1; T sees u, S sees v. The
    soft labels are softened by tau_kd; h, t_i, s_i, n_i and Z: as in CRD.

    From CrdAdv: the attack on the cross-entropy and lambda_con. From Contrastive: dim, estimator,
    bank, tau and the part `contrast`. Logged each epoch: mean of the weights before their scaling,
    their standard deviation after it, mean cosine between the student's embeddings of different
    images.
    """

    formula = (
        r"""
        L &= \lambda_{\mathrm{ce}}\,\mathrm{CE}(S(\tilde{x}), y)
          + \frac{\lambda_{\mathrm{con}}}{B}\sum_i w_i l_i \\
        &\quad + \lambda_{\mathrm{kd}}\tau_{\mathrm{kd}}^2\,
          \mathrm{KL}(T(u)/\tau_{\mathrm{kd}}\,\|\,S(v)/\tau_{\mathrm{kd}}) \\
        w_i &= p_T(y_i \mid u_i)^\beta \,/\, \frac{1}{B}\sum_j p_T(y_j \mid u_j)^\beta \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
        + CRITIC
    )
    paper = Paper(
        "Bai, Chen, Zhao, Wen, Jiang and Kot",
        "Feature Distillation With Guided Adversarial Contrastive Learning",
        "arXiv",
        2020,
        "https://arxiv.org/abs/2009.09922",
    )
    symmetric: bool = hp(False, "A6: add the student-anchored direction, which the figure lacks")
    student_input: str = hp(
        "adv", "A1: what the student embeds, v", choices=("adv", "clean", "both")
    )
    teacher_input: str = hp(
        "adv", "A2: what the teacher embeds, u; in the figure, as here, v", choices=("clean", "adv")
    )
    inner: str = hp("ce", "A5: what the attack maximises", choices=("ce", "feature"))
    weight: str = hp(
        "prob", "A7: sample weight; none: ablation", choices=("prob", "indicator", "none")
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

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {**super().build(student, teachers, num_train), "statistics": Statistics()}

    @property
    def epoch_dependent(self) -> bool:  # type: ignore[override]
        return self.two_stage

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        # The first stage has no classifier to attack.
        if self.inner == "feature" or not self.trains_classifier(batch):
            return feature_attack(nets, batch)
        return super().attack(nets, batch)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        contrast: Contrast = nets.parts["contrast"]  # type: ignore[assignment]
        statistics: Statistics = nets.parts["statistics"]  # type: ignore[assignment]
        with torch.no_grad():
            anchor = nets.teacher.features(adv if self.teacher_input == "adv" else batch.x)
            target = nets.teacher.head(anchor)
        features_adv, views = self.student_features(nets, batch, adv)
        weights = self.sample_weights(target, batch.y)
        embeddings = contrast.embed_s(views[0].detach())
        statistics.update(batch.gather(weights), batch.gather(embeddings))
        terms = {}
        if self.trains_features(batch):
            w, losses = weights / batch.mean(weights.mean()).clamp(min=1e-6), []
            # The contrast updates Z and the queue at each call.
            for view in views:
                positive, negative = contrast(anchor, view, batch.y, self.symmetric, batch.gather)
                w_negative = w if self.weigh == "all" else 1.0
                losses.append((w * positive + w_negative * negative).mean())
            terms["contrast"] = self.lambda_con * torch.stack(losses).mean()
        if self.trains_classifier(batch):
            logits_adv = nets.student.head(features_adv)
            terms["ce_adv"] = self.lambda_ce * F.cross_entropy(logits_adv, batch.y)
        if self.trains_classifier(batch) and self.lambda_kd:
            losses = [kl(target, nets.student.head(view), self.tau_kd).mean() for view in views]
            terms["kl"] = self.lambda_kd * self.tau_kd**2 * torch.stack(losses).mean()
        return terms

    def monitor(self, nets: Nets) -> dict[str, Tensor]:
        return dict(nets.parts["statistics"].named_buffers())

    def trains_features(self, batch: Batch) -> bool:
        """Return whether this epoch trains the features by contrast: of two stages the first."""
        return not self.two_stage or not batch.reached(0.5)

    def trains_classifier(self, batch: Batch) -> bool:
        """Return whether this epoch trains the classifier: of two stages the second."""
        return not self.two_stage or batch.reached(0.5)

    def student_features(
        self, nets: Nets, batch: Batch, adv: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the student's features of x~, and those of each v.

        Where the features are frozen they are those of eval mode, so that no running statistic of
        the trunk moves and the classifier is fitted to what it will be evaluated on.
        """
        trains = self.trains_features(batch)
        inputs = [adv] if self.student_input == "adv" else [adv, batch.x]
        with nullcontext() if trains else mode(nets.student, training=False):
            features = [nets.student.features(x) for x in inputs]
        if not trains:
            features = [view.detach() for view in features]
        views = features
        if self.student_input == "clean":
            views = features[1:]
        return features[0], views

    def sample_weights(self, target: Tensor, y: Tensor) -> Tensor:
        """Return the sample weights before their scaling to mean 1, (B,), in [0, 1]."""
        if self.weight == "none":
            return torch.ones_like(target[:, 0])
        if self.weight == "prob":
            return true_class_probability(target, y) ** self.beta
        return (target.argmax(dim=1) == y).float()


def feature_attack(nets: Nets, batch: Batch) -> Tensor:
    """Ascend 1 - cos between the student's embedding of x~ and the teacher's of x.

    Also where the loss has the teacher's embedding of x~: the teacher's of the clean image does not
    move while the attack does, so the attack needs no gradient of the teacher.
    """
    contrast: Contrast = nets.parts["contrast"]  # type: ignore[assignment]
    with torch.no_grad():
        anchor = contrast.embed_t(nets.teacher.features(batch.x))

    def cosine_distance(net: nn.Module, adv: Tensor) -> Tensor:
        embeddings = contrast.embed_s(net.features(adv))  # type: ignore[operator]
        return (1 - (embeddings * anchor).sum(dim=1)).sum()

    return pgd(nets.student, batch.x, cosine_distance, batch.budget, start="gauss")


METHOD = Gacd
