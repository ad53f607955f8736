"""What every method leans on: the network contract, one batch, the networks, hyper-parameters, the KL divergence.

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

from methods.inner import Budget, full

__all__ = [
    "RECIPE",
    "Batch",
    "Budget",
    "Method",
    "Net",
    "Nets",
    "hp",
    "kl",
    "official",
    "quirk",
    "scale",
    "trust",
]


# What of the training protocol an authors' script may set otherwise: fields of the harness's own description of training.
RECIPE = (
    "epochs",
    "batch",
    "lr",
    "weight_decay",
    "schedule",
    "milestones",
    "averaging",
    "swa_start",
)


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
    known: dict[nn.Module, Tensor] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # see Nets.clean

    @property
    def progress(self) -> float:
        """The share of the epochs that is done when this one is, in (0, 1]."""
        return (self.epoch + 1) / self.epochs

    def reached(self, share: float) -> bool:
        """Whether this share of the epochs is done; a share of 0 always is, and the epoch is not looked at."""
        return share == 0 or self.epoch >= share * self.epochs


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

    def clean(self, batch: Batch, role: str = "robust") -> Tensor:
        """A teacher's logits of the clean images, (B, C) without gradient, computed once a batch."""
        teacher = self.teachers[role]
        if teacher not in batch.known:
            batch.known[teacher] = self.at(batch.x, role)
        return batch.known[teacher]

    @torch.no_grad()
    def at(self, x: Tensor, role: str = "robust") -> Tensor:
        """A teacher's logits of any images, (B, C) without gradient."""
        logits: Tensor = self.teachers[role](x)
        return logits


def hp(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    choices: tuple[Any, ...] = (),
    above: float | None = None,
    most: float | None = None,
    official: Any = None,
) -> Any:
    """A hyper-parameter: default, meaning and search range (a numeric interval or choices), stated once.

    Values outside the search range are accepted, unless they are not above `above` (a temperature, say, must be above
    0), more than `most` (a share 1), or negative where the range is not. official: the value in the authors' script,
    where it is another.
    """
    search = {"low": low, "high": high, "log": log, "choices": choices}
    metadata = {
        "help": help,
        "search": search,
        "above": above,
        "most": most,
        "official": official,
        "quirk": False,
    }
    return dataclasses.field(default=default, metadata=metadata)


def quirk(default: Any, official: Any, why: str) -> Any:
    """A switch between the paper's loss and what the authors' script does instead, and in what that matters.

    `--official` sets it; it is no hyper-parameter, so it is not tuned.
    """
    choices = () if isinstance(default, bool) else (default, official)
    search = {"low": None, "high": None, "log": False, "choices": choices}
    return dataclasses.field(
        default=default,
        metadata={"help": why, "search": search, "official": official, "quirk": True},
    )


@dataclass(frozen=True)
class Method:
    """Base of all methods. Values are compared, hashed into the record and shown on the command line by field.

    A step is `attack`, `loss` at the images found, the optimiser's update, `after_step`. What a method learns or counts
    lives in the modules that `build` makes, never in itself, and as tensors: on a CUDA device steps are recorded and
    replayed, so that other values of Python, but for `Batch.epoch`, are those of the first steps.
    """

    requires: ClassVar[tuple[str, ...]] = (
        "robust",
    )  # roles of the teachers that are read; () = teacher-free
    recipe: ClassVar[
        tuple[tuple[str, Any, str], ...]
    ] = ()  # what the authors' script sets of RECIPE, what is odd

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(field, getattr(self, field.name))

    @property
    def adversarial(self) -> bool:
        """Whether the loss sees attacked images: cost, and the rule for the best checkpoint, follow it."""
        return type(self).attack is not Method.attack

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        """Trainable parts and buffers beyond the student, saved with it."""
        return {}

    def groups(self, nets: Nets) -> list[dict[str, Any]]:
        """The optimiser's parameter groups: SGD options, and `scale`, a factor on the suite's learning rate."""
        return [{"params": [*nets.student.parameters(), *nets.parts.parameters()]}]

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        """The inner problem: adversarial images for the batch, (B, C, H, W); the clean ones if there is none."""
        return batch.x

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        """The outer problem at the images `adv` that `attack` found: named scalar terms, already weighted.

        The harness minimises their sum and logs each.
        """
        raise NotImplementedError

    def after_step(self, nets: Nets, batch: Batch) -> None:
        """Runs after the optimiser's step (loss weights, temperatures)."""


def official(form: type[Method]) -> dict[str, Any]:
    """The hyper-parameters and switches that `--official` sets, by name."""
    values = {field.name: field.metadata.get("official") for field in dataclasses.fields(form)}
    return {name: value for name, value in values.items() if value is not None}


def fits(value: Any, default: Any) -> bool:
    """Whether a value is of the type of a default; a whole number will do for a float."""
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def check_range(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises ValueError, naming field and value, for what is not finite, not a declared choice or out of bounds."""
    search = field.metadata.get("search", {})
    above, most = field.metadata.get("above"), field.metadata.get("most")
    if search.get("choices") and value not in search["choices"]:
        raise ValueError(
            f"{field.name} = {value!r}: choose from {', '.join(map(str, search['choices']))}"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        raise ValueError(f"{field.name} = {value!r} is not finite")
    if above is not None and value <= above:
        raise ValueError(f"{field.name} = {value!r}: more than {above:g}")
    if value < 0 <= (search.get("low") or 0):
        raise ValueError(f"{field.name} = {value!r}: not negative")
    if most is not None and value > most:
        raise ValueError(f"{field.name} = {value!r}: at most {most:g}")


def scale(reduction: str, classes: int) -> float:
    """What stands before the batch's mean KL: "mean" averages over the classes too, "tenth" as if they were always 10.

    "mean10" averages over the classes where they are 10.
    """
    return {
        "batchmean": 1.0,
        "mean": 1 / classes,
        "tenth": 0.1,
        "mean10": 0.1 if classes == 10 else 1.0,
    }[reduction]


def trust(logits: Tensor, y: Tensor) -> Tensor:
    """The probability of the true class: (B, C), (B,) -> (B,)."""
    return full(logits).softmax(dim=1).gather(1, y[:, None]).squeeze(1)


def kl(target: Tensor, logits: Tensor, tau: float = 1.0) -> Tensor:
    """KL(softmax(target / tau) || softmax(logits / tau)) per sample, summed over classes: (B, C), (B, C) -> (B,).

    The target, a teacher say, is the first argument. Take `.mean()` for the "batchmean" reduction.
    """
    log_p = F.log_softmax(full(target) / tau, dim=1)
    log_q = F.log_softmax(full(logits) / tau, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
