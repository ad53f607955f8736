"""A contrastive critic of teacher and student features: CRD's, with live pairs.

The critic of an anchor with N negatives, of other classes, is h = r / (r + N), r = exp(t.s / tau) /
Z, for projected unit features t and s. Z is the running mean of the exponential over random pairs:
without it exp(1 / 0.07) saturates h at 1, and with it a random pair scores 1 / (1 + N). CRD's M,
the size of the training set, cancels (Tian, Krishnan and Isola, ICLR 2020).

`MemoryContrast` is the critic of CRD's code, with stored pairs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Gather, own_rows
from methods.inner import at_least_float32

Z_MOMENTUM = 0.99
MEMORY_MOMENTUM = 0.5
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
        scores = t @ candidates_s.T / self.tau
        positive, negative = self._anchor_losses(pairs, scores, allowed, self.log_z)
        # The teacher was the anchor; now the student is.
        if symmetric:
            scores = s @ candidates_t.T / self.tau
            positive_s, negative_s = self._anchor_losses(pairs, scores, allowed, self.log_z)
            positive, negative = positive + positive_s, negative + negative_s
        if self.training and len(self.bank_y):
            self._push(*(values.detach() for values in whole))
        return positive, negative

    def _anchor_losses(
        self, pairs: Tensor, scores: Tensor, allowed: Tensor, log_z: Tensor
    ) -> Losses:
        """Return both losses from scores: pairs (B,), candidates for negatives (B, K)."""
        if self.estimator == "infonce":
            scores = scores.masked_fill(~allowed, -math.inf)
            return -pairs, torch.cat([pairs[:, None], scores], dim=1).logsumexp(dim=1)
        log_n = allowed.sum(dim=1).clamp(min=1).to(pairs.dtype).log()
        # Until two images were seen together, Z is that of orthogonal embeddings.
        log_z = log_z.nan_to_num(0.0)
        # softplus: -log h and -log (1 - h) without the rounding of h near 0 and 1
        positive = F.softplus(log_n - (pairs - log_z))
        negative = F.softplus(scores - log_z - log_n[:, None])
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


class MemoryContrast(Contrast):
    """The contrast as in CRD's code: each pair has one embedding out of a memory.

    The memory has an entry for each training image and network: noise at first, then the mean of
    the last entry and the image's embedding, at unit length. Negatives are drawn for each image
    among those of other classes; if there are fewer, all are taken. An image without an entry yet
    is of any class. Z is the mean exponential of the first batch, one for each direction.
    """

    log_z_symmetric: Tensor
    memory_s: Tensor
    memory_t: Tensor
    memory_y: Tensor

    def __init__(
        self,
        width_s: int,
        width_t: int,
        dim: int,
        tau: float,
        estimator: str,
        num_train: int,
        negatives: int,
    ) -> None:
        super().__init__(width_s, width_t, dim, tau, estimator)
        self.negatives = negatives
        self.register_buffer("log_z_symmetric", torch.tensor(math.nan))
        # A coordinate of a random unit vector has the variance 1 / dim, as this noise has.
        bound = math.sqrt(3 / dim)
        for name in ("memory_s", "memory_t"):
            self.register_buffer(name, torch.empty(num_train, dim).uniform_(-bound, bound))
        # -1: no entry yet.
        self.register_buffer("memory_y", torch.full((num_train,), -1))

    def against_memory(
        self, f_t: Tensor, f_s: Tensor, y: Tensor, index: Tensor, gather: Gather = own_rows
    ) -> Losses:
        """Return the losses of `forward` in both directions; index: (B,) training images."""
        with torch.autocast(f_t.device.type, enabled=False):
            t, s = self.embed_t(f_t), self.embed_s(f_s)
            labels = self.memory_y.index_copy(0, gather(index), gather(y))
            drawn, allowed = self._draw_negatives(labels, y)
            losses = list[Losses]()
            for anchor, memory, log_z in (
                (t, self.memory_s, self.log_z),
                (s, self.memory_t, self.log_z_symmetric),
            ):
                # A copy, because the memory moves on before the backward pass.
                scores = anchor @ memory.to(anchor.dtype, copy=True).T / self.tau
                pairs, scores = scores.gather(1, index[:, None])[:, 0], scores.gather(1, drawn)
                if self.training:
                    _fix_z(log_z, pairs, scores.masked_fill(~allowed, -math.inf), gather)
                losses.append(self._anchor_losses(pairs, scores, allowed, log_z))
            if self.training:
                whole = (gather(values.detach()) for values in (s, t, y, index))
                self._remember(*whole)
        positive, negative = (torch.stack(sides).sum(dim=0) for sides in zip(*losses, strict=True))
        return positive, negative

    def _draw_negatives(self, labels: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions in the memory, (B, K), and which are of another class than the anchor's.

        All are, unless fewer than K images are. labels: of the memory's entries, -1 for none yet.
        """
        lots = torch.rand(len(y), len(labels), device=y.device)
        lots = lots.masked_fill(labels[None] == y[:, None], -1)
        best, drawn = lots.topk(min(self.negatives, len(labels)))
        return drawn, best >= 0

    @torch.no_grad()
    def _remember(self, s: Tensor, t: Tensor, y: Tensor, index: Tensor) -> None:
        """Move the entries of the whole batch's images halfway to their embeddings."""
        for memory, new in ((self.memory_s, s), (self.memory_t, t)):
            mean = MEMORY_MOMENTUM * memory[index] + (1 - MEMORY_MOMENTUM) * new.to(memory)
            memory.index_copy_(0, index, F.normalize(mean, dim=1))
        self.memory_y.index_copy_(0, index, y)


@torch.no_grad()
def _fix_z(log_z: Tensor, pairs: Tensor, scores: Tensor, gather: Gather) -> None:
    """Set log Z, if it is not set, to that of the mean exponential of all pairs and negatives.

    scores: (B, K), minus infinity for what is no negative.
    """
    exponents = gather(torch.cat([pairs[:, None], scores], dim=1))
    count = exponents.isfinite().sum().to(pairs.dtype)
    now = exponents.logsumexp(dim=(0, 1)) - count.log()
    log_z.copy_(torch.where(log_z.isnan(), now, log_z))


def _embed(project: nn.Linear, f: Tensor) -> Tensor:
    # Full precision also under autocast: exp(1 / tau) would multiply bf16's rounding.
    with torch.autocast(f.device.type, enabled=False):
        embeddings = project(f.to(project.weight.dtype))
        return F.normalize(at_least_float32(embeddings), dim=1)
