"""What several methods need to adapt themselves: rate decay, entropy, temperatures, class means."""

import torch
from torch import Tensor, nn

from methods.base import Batch, Gather, own_rows
from methods.inner import at_least_float32
from methods.recipes import THREE_MILESTONES


def rate_decay(batch: Batch) -> float:
    """Return 0.1 to the power of the milestones of RSLAD's script passed, not of the suite's."""
    passed = sum(batch.epoch >= share * batch.epochs for share in THREE_MILESTONES)
    return float(0.1**passed)


def softmax_entropy(logits: Tensor) -> Tensor:
    """(B, C) -> (B,)."""
    log_p = at_least_float32(logits).log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


class TeacherTemperatures(nn.Module):
    """B-MTARD's temperatures, from 1 to 10, of two teachers, and their last mean entropies."""

    tau: Tensor
    entropy: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tau", torch.ones(2))
        self.register_buffer("entropy", torch.ones(2))

    @torch.no_grad()
    def forward(
        self, robust: Tensor, natural: Tensor, gather: Gather = own_rows
    ) -> tuple[Tensor, Tensor]:
        """Soften both teachers' logits, (B, C), into targets without gradient."""
        softened = robust / self.tau[0], natural / self.tau[1]
        for i, logits in enumerate(softened):
            self.entropy[i] = gather(softmax_entropy(logits)).mean()
        return softened

    def move(self, rate: float) -> None:
        """Make the more uncertain teacher sharper and the other one softer."""
        self.tau.sub_(rate * (self.entropy - self.entropy.flip(0)).sign()).clamp_(1, 10)


class ClassMeans(nn.Module):
    """Means by class, over an epoch, of `kinds` values an image; the next epoch uses them."""

    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, kinds: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(kinds, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes))
        # A number and no tensor: to compare it must not wait for the device at each step.
        self.epoch = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.epoch)

    def set_extra_state(self, state: Tensor) -> None:
        self.epoch = int(state)

    def begin_step(self, batch: Batch, strength: float = 1.0, class_sums: bool = False) -> None:
        """Update the values if an epoch begins. Call it in each step, before `add`."""
        if batch.epoch != self.epoch:
            self.end_epoch(strength, class_sums)
            self.sums.zero_()
            self.counts.zero_()
            self.epoch = batch.epoch

    def end_epoch(self, strength: float, class_sums: bool) -> None:
        """Update the values from an epoch in which every class occurred, else keep them all.

        class_sums: divide each class's sum by the mean number of images of a class; then a class
        may be missing.
        """
        counts = self.counts.mean().expand_as(self.counts) if class_sums else self.counts
        if counts.min() > 0:
            self.update(self.sums / counts, strength)

    def add(self, values: Tensor, y: Tensor) -> None:
        """Add the values of the whole batch's images: (kinds, B); y: (B,)."""
        self.sums.index_add_(1, y, values.to(self.sums))
        self.counts.index_add_(0, y, torch.ones_like(y, dtype=self.counts.dtype))

    def update(self, means: Tensor, strength: float) -> None:
        """Update what the subclass keeps by class from means, or scaled sums: (kinds, C)."""
        raise NotImplementedError
