"""All that a method may lean on: the network contract, one batch, the networks, hyper-parameters, the KL divergence.

A method is a frozen dataclass in a file of its own. Its fields are its hyper-parameters, declared once with `hp`:
the command line, the documentation and the tuner read them from here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.inner import Budget

__all__ = ["Batch", "Budget", "Method", "Net", "Nets", "hp", "kl"]


class Net(nn.Module):
    """A classifier of images in [0, 1]; normalisation lives inside, so attacks act on pixels.

    Subclasses set `width` (size of the penultimate feature) and `num_classes`, and define `features` and `head`.
    """

    width: int
    num_classes: int
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """`mean` and `std`: one value per channel; zeros and ones leave the pixels as they are."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, width), after global pooling."""
        raise NotImplementedError

    def head(self, f: Tensor) -> Tensor:
        """(B, width) -> logits (B, num_classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@dataclass(frozen=True)
class Batch:
    """One training batch. x: (B, C, H, W) float in [0, 1]; y: (B,) int64; index: (B,) positions in the training set.

    `epoch` counts from 0. `budget` is the suite's inner-attack budget, the same for every method.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    epoch: int
    epochs: int
    num_train: int
    budget: Budget


@dataclass(frozen=True)
class Nets:
    """The networks a loss may use. `teachers` holds every frozen teacher by role; `parts` what `Method.build` made."""

    student: Net
    teachers: dict[str, Net]
    parts: nn.ModuleDict

    @property
    def teacher(self) -> Net:
        """The robust teacher: frozen, in eval mode."""
        return self.teachers["robust"]


def hp(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    choices: tuple[Any, ...] = (),
) -> Any:
    """A hyper-parameter: default, meaning and search range (a numeric interval or choices), stated once."""
    search = {"low": low, "high": high, "log": log, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help, "search": search})


@dataclass(frozen=True)
class Method:
    """Base of all methods. Values are compared, hashed into the record and shown on the command line by field."""

    requires: ClassVar[tuple[str, ...]] = ("robust",)  # roles of the teachers that `loss` reads; () = teacher-free
    adversarial: ClassVar[bool] = True  # False: no inner attack, so a step costs no attack passes

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(field, getattr(self, field.name))

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        """Trainable parts and buffers beyond the student, saved with it."""
        return {}

    def loss(self, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; the harness minimises their sum and logs each."""
        raise NotImplementedError

    def after_step(self, nets: Nets, batch: Batch) -> None:
        """Runs after the optimiser's step (memory banks, loss weights)."""


def check_range(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ValueError, naming field and value, when a value is not finite or not one of its declared choices."""
    choices = field.metadata.get("search", {}).get("choices")
    if choices and value not in choices:
        raise ValueError(f"{field.name} = {value!r}: choose from {', '.join(map(str, choices))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{field.name} = {value!r} is not finite")


def kl(target: Tensor, logits: Tensor, tau: float = 1.0) -> Tensor:
    """KL(softmax(target / tau) || softmax(logits / tau)) per sample, summed over classes: (B, C), (B, C) -> (B,).

    The target, a teacher say, is the first argument. Take `.mean()` for the "batchmean" reduction.
    """
    log_p = F.log_softmax(target / tau, dim=1)
    log_q = F.log_softmax(logits / tau, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
