"""What methods adapt while they train, loss weights and temperatures: modules of buffers, saved with the student."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch
from methods.inner import Objective, full
from methods.recipes import FALLS


def decay(batch: Batch) -> float:
    """A tenth for each of FALLS that has passed, wherever the suite's learning rate falls."""
    return float(0.1 ** sum(batch.epoch >= fall * batch.epochs for fall in FALLS))


def magnitude(*values: Tensor) -> Tensor:
    """The power of ten not above the smallest of positive values, without gradient."""
    smallest = torch.stack([value.detach() for value in values]).min()
    return 10 ** smallest.clamp(min=1e-6).log10().floor()


def by_entropy(target: Tensor, shifted: bool) -> tuple[Tensor, Tensor]:
    """SAAD's weights of the adversarial and the clean term, (B,) each, from the entropies of a teacher's logits (B, C).

    The entropies, and 1 - their share of log C. shifted: both of what they are above the least, the first 5 times.
    """
    entropy = entropies(target)
    if shifted:
        above = entropy - entropy.min()
        return 5 * above, 1 - above / above.max().clamp(min=1e-6)
    return entropy, 1 - entropy / math.log(target.shape[1])


def entropies(logits: Tensor) -> Tensor:
    """Of the softmax of the logits, (B, C): (B,)."""
    log_p = full(logits).log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def untrained(net: nn.Module) -> nn.Module:
    """A copy with fresh weights."""
    fresh = copy.deepcopy(net)
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    return fresh


class Balance(nn.Module):
    """MTARD's weights of two terms, which sum to 1; the terms' first values and their last."""

    weights: Tensor
    first: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([0.5, 0.5]))
        self.register_buffer("first", torch.zeros(2))
        self.register_buffer("last", torch.zeros(2))

    def observe(self, terms: Tensor) -> Tensor:
        """Keeps the terms, (2,); returns the weights they have in this step."""
        self.last.copy_(terms)
        self.first.copy_(torch.where(self.first > 0, self.first, self.last))
        return self.weights.clone()

    def move(self, rate: float, gamma: float) -> None:
        """One step towards the term that has fallen less."""
        r = (self.last / self.first.clamp(min=1e-12)) ** gamma
        self.weights += rate * (r / r.sum().clamp(min=1e-12) - self.weights)


class Uncertainty(nn.Module):
    """B-MTARD's temperatures of two teachers, from 1 to 10, and the mean entropies of their last softened outputs."""

    tau: Tensor
    entropy: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tau", torch.ones(2))
        self.register_buffer("entropy", torch.ones(2))

    @torch.no_grad()
    def forward(self, robust: Tensor, natural: Tensor) -> tuple[Tensor, Tensor]:
        """Softens the logits of both, (B, C), into targets without gradient."""
        softened = robust / self.tau[0], natural / self.tau[1]
        for i, logits in enumerate(softened):
            self.entropy[i] = entropies(logits).mean()
        return softened

    def move(self, rate: float) -> None:
        """The more uncertain teacher becomes sharper, the other softer."""
        self.tau.sub_(rate * (self.entropy - self.entropy.flip(0)).sign()).clamp_(1, 10)


class ClassMeans(nn.Module):
    """Means by class over an epoch; at the first batch of the next they change what the subclass keeps by class."""

    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, kinds: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(kinds, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes))
        self.epoch = 0  # known to the host: comparing it must not wait for the device at each step

    def get_extra_state(self) -> Tensor:
        """The epoch, saved with the rest."""
        return torch.tensor(self.epoch)

    def set_extra_state(self, state: Tensor) -> None:
        self.epoch = int(state)

    def begin(self, batch: Batch, strength: float) -> None:
        """Call it once a step, before anything is added."""
        if batch.epoch != self.epoch:
            if self.counts.min() > 0:
                self.change(self.sums / self.counts, strength)
            self.sums.zero_()
            self.counts.zero_()
            self.epoch = batch.epoch

    def add(self, values: Tensor, y: Tensor) -> None:
        """values: (kinds, B), one of each kind for an image; y: (B,)."""
        self.sums.index_add_(1, y, values.to(self.sums))
        self.counts.index_add_(0, y, torch.ones_like(y, dtype=self.counts.dtype))

    def change(self, means: Tensor, strength: float) -> None:
        """means: (kinds, C)."""
        raise NotImplementedError


class ClassWeights(ClassMeans):
    """Fair-ARD's: the fewer steps of an attack the images of a class stand, the more they weigh."""

    weights: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, 1)
        self.register_buffer("weights", torch.ones(num_classes))

    def change(self, means: Tensor, strength: float) -> None:
        """means: (1, C) steps survived, kappa; strength: the exponent."""
        w = means[0].clamp(min=0.1) ** -strength
        self.weights.copy_((w / w.mean()).clamp(5 / 6, 5 / 2))

    def counting(self, objective: Objective, y: Tensor) -> tuple[Objective, Tensor]:
        """The objective, and a tensor (B,) that counts at how many of its calls each image was still right."""
        survived = torch.zeros_like(y)

        def watched(net: nn.Module, adv: Tensor) -> Tensor:
            heard: list[Tensor] = []
            hook = net.register_forward_hook(lambda _, __, logits: heard.append(logits))
            try:
                value = objective(net, adv)
            finally:
                hook.remove()
            survived.add_(heard[-1].argmax(dim=1) == y)
            return value

        return watched, survived


class ClassTemperatures(ClassMeans):
    """ABSLD's, from 0.5 to 5: the classes of a higher loss get sharper labels. Row 0: clean images, 1: adversarial ones."""

    tau: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, 2)
        self.register_buffer("tau", torch.ones(2, num_classes))

    def of(self, batch: Batch, rate: float) -> Tensor:
        """Those of each image's class, (2, B, 1), which have moved where an epoch begins."""
        self.begin(batch, rate * decay(batch))
        return self.tau[:, batch.y, None]

    @torch.no_grad()
    def observe(self, near: Tensor, far: Tensor, y: Tensor) -> None:
        """Adds the cross-entropies of the student's logits of both kinds of images, (B, C) each."""
        self.add(
            torch.stack(
                [F.cross_entropy(full(logits), y, reduction="none") for logits in (near, far)]
            ),
            y,
        )

    def change(self, means: Tensor, strength: float) -> None:
        """means: (2, C) cross-entropies; strength: the rate."""
        gap = means - means.mean(dim=1, keepdim=True)
        steepest = gap.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        self.tau.sub_(strength * gap / steepest).clamp_(0.5, 5)
