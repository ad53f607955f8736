"""A contrastive critic of teacher and student features: CRD's, with live pairs.

The critic of an anchor with N negatives, of other classes, is h = r / (r + N), r = exp(t.s / tau) /
Z, for projected unit features t and s. Z is the running mean of the exponential over random pairs:
without it exp(1 / 0.07) saturates h at 1, and with it a random pair scores 1 / (1 + N). CRD's M,
the size of the training set, cancels (Tian, Krishnan and Isola, ICLR 2020).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Gather, own_rows
from methods.inner import at_least_float32

Z_MOMENTUM = 0.99
# The loss of anchor i: the last lines of a method's `formula`.
CRITIC = r""" \\
    l_i &= -\log\, h_{ii} - \sum_{j:\, y_j \ne y_i} \log(1 - h_{ij}) \\
    h_{ij} &= \frac{e^{t_i \cdot s_j / \tau}}{e^{t_i \cdot s_j / \tau} + n_i Z}
"""
Losses = tuple[Tensor, Tensor]


class Contrast(nn.Module):
    """Projections of both features, log Z, and queues of past embeddings and their labels."""

    log_z: Tensor
    bank_s: Tensor
    bank_t: Tensor
    bank_y: Tensor

    def __init__(
        self, width_s: int, width_t: int, dim: int, tau: float, estimator: str, bank: int = 0
    ) -> None:
        super().__init__()
        self.tau, self.estimator = tau, estimator
        self.project_s = nn.Linear(width_s, dim)
        self.project_t = nn.Linear(width_t, dim)
        self.register_buffer("log_z", torch.tensor(math.nan))
        self.register_buffer("bank_s", torch.zeros(bank, dim))
        self.register_buffer("bank_t", torch.zeros(bank, dim))
        # -1: empty.
        self.register_buffer("bank_y", torch.full((bank,), -1))

    def embed_s(self, f: Tensor) -> Tensor:
        """(B, student width) -> (B, dim), unit length."""
        return _embed(self.project_s, f)

    def embed_t(self, f: Tensor) -> Tensor:
        """(B, teacher width) -> (B, dim), unit length."""
        return _embed(self.project_t, f)

    def forward(
        self, f_t: Tensor, f_s: Tensor, y: Tensor, symmetric: bool, gather: Gather = own_rows
    ) -> Losses:
        """Return the losses of each anchor's positive pair and of its negatives, (B,) each.

        gather: the batch's. Anchors are this device's, candidates and Z those of all devices.
        """
        with torch.autocast(f_t.device.type, enabled=False):
            return self._losses(self.embed_t(f_t), self.embed_s(f_s), y, symmetric, gather)

    def _losses(self, t: Tensor, s: Tensor, y: Tensor, symmetric: bool, gather: Gather) -> Losses:
        """`forward` for embeddings t, s: (B, dim)."""
        candidates_s, candidates_t, labels = whole = gather(s), gather(t), gather(y)
        if self.training:
            self._track_z(candidates_t @ candidates_s.T / self.tau)
        if len(self.bank_y):
            # Copies, because the banks move on before the backward pass.
            candidates_s = self.bank_s.to(s.dtype, copy=True)
            candidates_t = self.bank_t.to(t.dtype, copy=True)
            labels = self.bank_y.clone()
        allowed = (labels[None] != y[:, None]) & (labels[None] >= 0)
        pairs = (t * s).sum(dim=1) / self.tau
        positive, negative = self._anchor_losses(pairs, t @ candidates_s.T / self.tau, allowed)
        # The teacher was the anchor; now the student is.
        if symmetric:
            scores = s @ candidates_t.T / self.tau
            positive_s, negative_s = self._anchor_losses(pairs, scores, allowed)
            positive, negative = positive + positive_s, negative + negative_s
        if self.training and len(self.bank_y):
            self._push(*(values.detach() for values in whole))
        return positive, negative

    def _anchor_losses(self, pairs: Tensor, scores: Tensor, allowed: Tensor) -> Losses:
        """Return both losses from scores: pairs (B,), candidates for negatives (B, K)."""
        if self.estimator == "infonce":
            scores = scores.masked_fill(~allowed, -math.inf)
            return -pairs, torch.cat([pairs[:, None], scores], dim=1).logsumexp(dim=1)
        log_n = allowed.sum(dim=1).clamp(min=1).log()
        # softplus: -log h and -log (1 - h) without the rounding of h near 0 and 1
        positive = F.softplus(log_n - (pairs - self.log_z))
        negative = F.softplus(scores - self.log_z - log_n[:, None])
        return positive, (negative * allowed).sum(dim=1)

    @torch.no_grad()
    def _track_z(self, scores: Tensor) -> None:
        """Move Z towards the mean exponential over pairs of different images: scores (B, B)."""
        pairs = len(scores) * (len(scores) - 1)
        if not pairs:
            return
        diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        now = scores.masked_fill(diagonal, -math.inf).logsumexp(dim=(0, 1)) - math.log(pairs)
        old = torch.where(self.log_z.isnan(), now, self.log_z)
        old_share, new_share = math.log(Z_MOMENTUM), math.log(1 - Z_MOMENTUM)
        self.log_z.copy_(torch.logaddexp(old + old_share, now + new_share))

    @torch.no_grad()
    def _push(self, s: Tensor, t: Tensor, y: Tensor) -> None:
        """Put the whole batch at the head of the queues; the oldest embeddings fall out."""
        size = len(self.bank_y)
        for bank, new in ((self.bank_s, s), (self.bank_t, t), (self.bank_y, y)):
            bank.copy_(torch.cat([new, bank])[:size])


def _embed(project: nn.Linear, f: Tensor) -> Tensor:
    # Full precision also under autocast: exp(1 / tau) would multiply bf16's rounding.
    with torch.autocast(f.device.type, enabled=False):
        embeddings = project(f.to(project.weight.dtype))
        return F.normalize(at_least_float32(embeddings), dim=1)
