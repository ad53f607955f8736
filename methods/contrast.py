"""A contrastive critic between teacher and student features, after CRD (Tian, Krishnan and Isola, "Contrastive
Representation Distillation", ICLR 2020), with live positives and negatives that differ in class.

The critic of an anchor with N negatives is h = r / (r + N), r = exp(t.s / tau) / Z, for projected unit features t and s.
Z is the running mean of the exponential over random pairs: without it exp(1 / 0.07) saturates h at 1, and with it a
random pair scores 1 / (1 + N). CRD's M, the size of the training set, cancels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Nets, kl, trust
from methods.inner import full, pgd

Z_MOMENTUM = 0.99


class Contrast(nn.Module):
    """Projections of both features, log Z, and (bank > 0) queues of past embeddings with labels, -1 where empty."""

    log_z: Tensor
    bank_s: Tensor
    bank_t: Tensor
    bank_y: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        dim: int,
        tau: float,
        estimator: str,
        bank: int = 0,
    ) -> None:
        super().__init__()
        self.tau, self.estimator = tau, estimator
        self.project_s = nn.Linear(student_width, dim)
        self.project_t = nn.Linear(teacher_width, dim)
        self.register_buffer("log_z", torch.tensor(math.nan))
        self.register_buffer("bank_s", torch.zeros(bank, dim))
        self.register_buffer("bank_t", torch.zeros(bank, dim))
        self.register_buffer("bank_y", torch.full((bank,), -1))

    def embed_s(self, f: Tensor) -> Tensor:
        """(B, student width) -> (B, dim), unit length."""
        return self._unit(self.project_s, f)

    def embed_t(self, f: Tensor) -> Tensor:
        """(B, teacher width) -> (B, dim), unit length."""
        return self._unit(self.project_t, f)

    def _unit(self, project: nn.Linear, f: Tensor) -> Tensor:
        """In full precision also under autocast: exp(1 / tau) would multiply bf16's rounding."""
        with torch.autocast(f.device.type, enabled=False):
            return F.normalize(full(project(f.to(project.weight.dtype))), dim=1)

    def forward(
        self, f_t: Tensor, f_s: Tensor, y: Tensor, symmetric: bool
    ) -> tuple[Tensor, Tensor]:
        """Losses per anchor, (B,) each: that of the positive pair and that of the negatives.

        f_t: (B, teacher width), f_s: (B, student width), y: (B,). The teacher is the anchor; `symmetric` adds the
        direction in which the student is.
        """
        with torch.autocast(f_t.device.type, enabled=False):
            return self._losses(self.embed_t(f_t), self.embed_s(f_s), y, symmetric)

    def _losses(self, t: Tensor, s: Tensor, y: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
        """`forward` for embeddings t, s: (B, dim)."""
        if self.training:
            self._track_z(t @ s.T / self.tau)
        others_s, others_t, labels = s, t, y
        if len(self.bank_y):  # clones, because the banks move on before the backward pass
            others_s, others_t, labels = (
                self.bank_s.to(s.dtype, copy=True),
                self.bank_t.to(t.dtype, copy=True),
                self.bank_y.clone(),
            )
        allowed = (labels[None] != y[:, None]) & (labels[None] >= 0)
        pairs = (t * s).sum(dim=1) / self.tau
        positive, negative = self._anchored(pairs, t @ others_s.T / self.tau, allowed)
        if symmetric:
            again, more = self._anchored(pairs, s @ others_t.T / self.tau, allowed)
            positive, negative = positive + again, negative + more
        if self.training and len(self.bank_y):
            self._push(s.detach(), t.detach(), y)
        return positive, negative

    def _anchored(self, pairs: Tensor, scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """pairs: (B,) score of each anchor's positive; scores, allowed: (B, K) candidates for negatives."""
        if self.estimator == "infonce":
            scores = scores.masked_fill(~allowed, -math.inf)
            return -pairs, torch.cat([pairs[:, None], scores], dim=1).logsumexp(dim=1)
        log_n = allowed.sum(dim=1).clamp(min=1).log()
        positive = F.softplus(log_n - (pairs - self.log_z))  # -log h
        negative = F.softplus(scores - self.log_z - log_n[:, None])  # -log (1 - h)
        return positive, (negative * allowed).sum(dim=1)

    @torch.no_grad()
    def _track_z(self, scores: Tensor) -> None:
        """Moves Z towards the mean exponential over pairs of different images: scores (B, B)."""
        pairs = len(scores) * (len(scores) - 1)
        if not pairs:
            return
        off = scores.masked_fill(
            torch.eye(len(scores), dtype=torch.bool, device=scores.device), -math.inf
        )
        now = off.logsumexp(dim=(0, 1)) - math.log(pairs)
        old = torch.where(self.log_z.isnan(), now, self.log_z)
        self.log_z.copy_(
            torch.logaddexp(old + math.log(Z_MOMENTUM), now + math.log(1 - Z_MOMENTUM))
        )

    @torch.no_grad()
    def _push(self, s: Tensor, t: Tensor, y: Tensor) -> None:
        """First in, first out."""
        size = len(self.bank_y)
        for bank, new in ((self.bank_s, s), (self.bank_t, t), (self.bank_y, y)):
            bank.copy_(torch.cat([new, bank])[:size])


def weights(kind: str, beta: float, target: Tensor, y: Tensor) -> Tensor:
    """How far the teacher can be trusted: (B, C) logits, (B,) labels -> (B,) of mean 1, or all 0 if it is never right."""
    if kind == "none":
        return torch.ones_like(target[:, 0])
    w = trust(target, y) ** beta if kind == "prob" else (target.argmax(dim=1) == y).float()
    return w / w.mean().clamp(min=1e-6)


class Seen(NamedTuple):
    """What teacher and student make of the images that they see, u and v."""

    anchor: Tensor  # the teacher's features of u, (B, teacher width), without gradient
    target: Tensor  # its logits of u, (B, C), without gradient
    far: Tensor  # the student's features of x~, (B, student width), whatever v is
    found: list[Tensor]  # those of each v


def see(
    nets: Nets, x: Tensor, adv: Tensor, teacher_input: str, student_input: str, learn: bool
) -> Seen:
    """u is "clean" or "adv", v one of them or "both". learn: the student's features keep their gradient."""
    with torch.no_grad():
        anchor = nets.teacher.features(adv if teacher_input == "adv" else x)
        target = nets.teacher.head(anchor)
    far = nets.student.features(adv)
    near = nets.student.features(x) if student_input != "adv" else far
    if not learn:
        far, near = far.detach(), near.detach()
    return Seen(
        anchor, target, far, {"adv": [far], "clean": [near], "both": [far, near]}[student_input]
    )


def guided(nets: Nets, seen: Seen, y: Tensor, w: Tensor, symmetric: bool, weigh: str) -> Tensor:
    """The mean contrastive loss over all v, weighted by w, (B,); weigh: "all" of it or the "positive" pairs alone.

    Each v moves Z and the queue.
    """
    losses = []
    for found in seen.found:
        positive, negative = nets.parts["contrast"](seen.anchor, found, y, symmetric)
        losses.append((w * positive + (w if weigh == "all" else 1.0) * negative).mean())
    return torch.stack(losses).mean()


def soft(nets: Nets, seen: Seen, tau: float) -> Tensor:
    """The mean KL(T(u) || S(v)) over all v, softened by tau."""
    return torch.stack(
        [kl(seen.target, nets.student.head(found), tau).mean() for found in seen.found]
    ).mean()


def stages(batch: Batch, two: bool) -> tuple[bool, bool]:
    """Whether this epoch trains the features by contrast, and whether it trains the classifier; half each if `two`."""
    if not two:
        return True, True
    second = batch.reached(0.5)
    return not second, second


def turned(nets: Nets, batch: Batch) -> Tensor:
    """Images for which 1 - cos between the student's embedding of them and the teacher's of the clean ones is large."""
    contrast: Contrast = nets.parts["contrast"]  # type: ignore[assignment]
    with torch.no_grad():
        anchor = contrast.embed_t(nets.teacher.features(batch.x))

    def angle(net: nn.Module, adv: Tensor) -> Tensor:
        return (1 - (contrast.embed_s(net.features(adv)) * anchor).sum(dim=1)).sum()  # type: ignore[operator]

    return pgd(nets.student, batch.x, angle, batch.budget, start="gauss")


def nt_xent(a: Tensor, b: Tensor, tau: float) -> Tensor:
    """Mean over 2 B anchors, the rows of a and b, (B, D) each: rows of the same place attract by their cosine."""
    views = F.normalize(full(torch.cat([a, b])), dim=1)
    scores = (views @ views.T / tau).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.arange(len(views), device=a.device).roll(len(a)))


def confusion(target: Tensor, y: Tensor) -> Tensor:
    """(C, C), columns sum to 1: on the diagonal the accuracy of `target` (B, C) on each class, 1 for one without images."""
    classes = target.shape[1]
    hit = (target.argmax(dim=1) == y).float()
    none = torch.zeros(classes, dtype=hit.dtype, device=y.device)
    count, hits = none.index_add(0, y, torch.ones_like(hit)), none.index_add(0, y, hit)
    right = torch.where(count > 0, hits / count.clamp(min=1), 1.0)
    off = ((1 - right) / max(classes - 1, 1)).expand(classes, classes)
    return torch.where(torch.eye(classes, dtype=torch.bool, device=y.device), right, off)
