"""The base of every method: networks, batches, hyper-parameters and the KL divergence.

A method is a frozen dataclass in a file of its own. Its fields are its hyper-parameters, declared
once with `hp`: the command line, the documentation and the tuner read them from here.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# `as`: the form in which a type checker lets others import the name from here.
from methods.inner import Budget as Budget
from methods.inner import at_least_float32
from methods.renamed import add_renamed_members, lookup_renamed, module_getattr

# The fields of the training protocol that an authors' script may set otherwise.
RECIPE = (
    *("epochs", "batch", "lr", "weight_decay", "nesterov", "schedule", "milestones"),
    *("averaging", "swa_start", "drop_last", "normalise", "clamp_start"),
)


@dataclass(frozen=True)
class Paper:
    """Where a method was published. `url`: https, or "" where no page could be checked."""

    authors: str
    title: str
    venue: str
    year: int
    url: str = ""


class Net(nn.Module):
    """A classifier of images in [0, 1]; it normalises them itself, so attacks act on pixels.

    Subclasses set `width` (size of the penultimate feature) and `num_classes`, and define
    `features` and `head`. `fold_batchnorm`: whether attacks may fold it (methods/fold.py).
    """

    width: int
    num_classes: int
    mean: Tensor
    std: Tensor
    fold_batchnorm: bool = True

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """`mean` and `std`: one value per channel; zeros and ones leave the pixels as they are."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalise(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def see_raw_pixels(self) -> None:
        """Leave the pixels as they are. The mean and deviation are part of a checkpoint."""
        self.mean.zero_()
        self.std.fill_(1.0)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, width), after global pooling."""
        raise NotImplementedError

    def head(self, f: Tensor) -> Tensor:
        """(B, width) -> logits (B, num_classes)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


# From the rows of one device to those of all, in the order of the batch.
Gather = Callable[[Tensor], Tensor]


def own_rows(values: Tensor) -> Tensor:
    """Return the rows of a single device, which are all there are."""
    return values


@dataclass(frozen=True)
class Batch:
    """One training batch, in an epoch that counts from 0, with the suite's inner-attack budget.

    x: (B, C, H, W) float in [0, 1]; y: (B,) int64; index: (B,) positions in the training set.
    Several devices have a part of B images each; `gather` and `mean` are over the whole batch.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    epoch: int
    epochs: int
    num_train: int
    budget: Budget
    # All devices' rows of a tensor that has one for each image, with their gradients.
    gather: Gather = dataclasses.field(default=own_rows, repr=False, compare=False)
    # For `Nets.teacher_logits`.
    cached_logits: dict[nn.Module, Tensor] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def progress(self) -> float:
        """The share of the epochs that is done after this one, in (0, 1]."""
        return (self.epoch + 1) / self.epochs

    def mean(self, statistic: Tensor) -> Tensor:
        """Return the mean over the devices of what each computed from its part of the batch."""
        return self.gather(statistic[None]).mean(dim=0)

    def reached(self, share: float) -> bool:
        """Return whether this share of the epochs is done. Share 0 is, whatever the epoch."""
        return share == 0 or self.epoch >= share * self.epochs


@dataclass(frozen=True)
class Nets:
    """The student, the frozen teachers by role, and the parts that `Method.build` returned."""

    student: Net
    teachers: dict[str, Net]
    parts: nn.ModuleDict

    @property
    def teacher(self) -> Net:
        """The robust teacher: frozen, in eval mode."""
        return self.teachers["robust"]

    def teacher_logits(self, batch: Batch, role: str = "robust") -> Tensor:
        """Return a teacher's logits of the clean images, (B, C), computed once a batch."""
        teacher = self.teachers[role]
        if teacher not in batch.cached_logits:
            batch.cached_logits[teacher] = self.teacher_logits_at(batch.x, role)
        return batch.cached_logits[teacher]

    @torch.no_grad()
    def teacher_logits_at(self, x: Tensor, role: str = "robust") -> Tensor:
        """Return a teacher's logits of any images, (B, C), without gradient."""
        logits: Tensor = self.teachers[role](x)
        return logits

    if not TYPE_CHECKING:
        __getattr__ = lookup_renamed


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
    """Declare a hyper-parameter: default, meaning and search range, stated once.

    Numbers outside low to high are accepted, unless not larger than `above` (a temperature: 0),
    larger than `most` (a share: 1) or negative with low >= 0. official: the authors' value.
    """
    search = {"low": low, "high": high, "log": log, "choices": choices}
    metadata = {"help": help, "search": search, "above": above, "most": most}
    metadata |= {"official": official, "quirk": False}
    return dataclasses.field(default=default, metadata=metadata)


def quirk(default: Any, official: Any, why: str, *, later: bool = False) -> Any:
    """Declare a switch to the authors' script, set by `--official`. `why`: what differs.

    It is no hyper-parameter, so it is not tuned. later: records of the method are older than the
    switch; see `spec_values`.
    """
    choices = () if isinstance(default, bool) else (default, official)
    search = {"low": None, "high": None, "log": False, "choices": choices}
    metadata = {"help": why, "search": search, "official": official, "quirk": True}
    metadata |= {"later": later}
    return dataclasses.field(default=default, metadata=metadata)


KL_REDUCTIONS = {
    "mean": "KL averaged over the classes too: a tenth of it on 10 classes",
    "mean10": "KL averaged over the classes too on CIFAR-10, not on CIFAR-100",
    "tenth": "a tenth of the KL, a smaller loss against the weight decay",
}


def kl_reduction(official: str) -> Any:
    """Declare how the authors' script reduces the KL divergence; see `kl_scale`."""
    return quirk("batchmean", official, KL_REDUCTIONS[official])


@dataclass(frozen=True)
class Method:
    """Base of all methods. Its values are compared and hashed into the record field by field.

    A step is `attack`, `loss` at its adversarial examples, the optimiser's update, `after_step`.
    What a method learns or counts lives as tensors in the modules that `build` returns, never in
    the method: on a CUDA device steps are captured, and a replay sees old Python values.
    """

    # The paper that defines the method, None for a control. A subclass is another method: it
    # declares its own.
    paper: ClassVar[Paper | None] = None
    # The loss in LaTeX: lines that \\ separates and & aligns. Not inherited either.
    formula: ClassVar[str] = ""
    # Roles of the teachers that are read: "robust", "natural", both or none.
    teacher_roles: ClassVar[tuple[str, ...]] = ("robust",)
    # What the authors' script sets in the training: (field of RECIPE, value, how it differs).
    recipe: ClassVar[tuple[tuple[str, Any, str], ...]] = ()
    # What the script does otherwise also then: a sentence each.
    unlike_script: ClassVar[tuple[str, ...]] = ()
    # Whether a step depends on `Batch.epoch`. If not, a captured step serves in other epochs too.
    epoch_dependent: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.paper = vars(cls).get("paper")
        cls.formula = vars(cls).get("formula", "")
        add_renamed_members(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name))

    @property
    def adversarial(self) -> bool:
        """Whether the loss sees adversarial examples. Cost and checkpoint rule follow it."""
        return type(self).attack is not Method.attack

    def official_recipe(self) -> tuple[tuple[str, Any, str], ...]:
        """Return `recipe` for these values: another base, say, may have another script."""
        return self.recipe

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        """Return trainable parts and buffers beyond the student; they are saved with it."""
        return {}

    def param_groups(self, nets: Nets) -> list[dict[str, Any]]:
        """Return SGD's parameter groups; `scale` in one is a factor on the learning rate."""
        return [{"params": [*nets.student.parameters(), *nets.parts.parameters()]}]

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        """Solve the inner problem: return adversarial examples, (B, C, H, W), or the images."""
        return batch.x

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        """Return the weighted scalar terms at `adv`, what `attack` returned, by name."""
        raise NotImplementedError

    def after_step(self, nets: Nets, batch: Batch) -> None:
        """Run after the optimiser's step: update loss weights, temperatures and the like."""

    def monitor(self, nets: Nets) -> dict[str, Tensor]:
        """Return scalars of the last step to log beside the loss terms, by name.

        They are buffers of the parts, which `loss` fills: a captured step does so too. The log has
        their means over each epoch.
        """
        return {}


add_renamed_members(Method)


def official_values(method_class: type[Method]) -> dict[str, Any]:
    """Return the hyper-parameters and switches that `--official` sets, by name."""
    fields = dataclasses.fields(method_class)
    values = {field.name: field.metadata.get("official") for field in fields}
    return {name: value for name, value in values.items() if value is not None}


def spec_values(method: Method) -> dict[str, Any]:
    """Return the values that a run's spec states, by name: all but later quirks at the default.

    So runs, and students of teachers, of before a quirk was declared keep their ids.
    """
    values = dataclasses.asdict(method)
    for field in dataclasses.fields(method):
        if field.metadata.get("later") and values[field.name] == field.default:
            del values[field.name]
    return values


def matches_type(value: Any, default: Any) -> bool:
    """Return whether a value has the type of a default. An int is a float too, a bool is not."""
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def check_value(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise ValueError for a value that is no choice, not finite or out of bounds."""
    search = field.metadata.get("search", {})
    above, most = field.metadata.get("above"), field.metadata.get("most")
    if search.get("choices") and value not in search["choices"]:
        choices = ", ".join(map(str, search["choices"]))
        raise ValueError(f"{field.name} = {value!r}: choose from {choices}")
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


def kl_scale(reduction: str, classes: int) -> float:
    """Return the factor on the batch's mean KL, for the values of `kl_reduction`."""
    # "tenth": as if the classes were always 10; "mean10": only where they are.
    mean10 = 0.1 if classes == 10 else 1.0
    factors = {"batchmean": 1.0, "mean": 1 / classes, "tenth": 0.1, "mean10": mean10}
    return factors[reduction]


def true_class_probability(logits: Tensor, y: Tensor) -> Tensor:
    """(B, C), (B,) -> (B,)."""
    return at_least_float32(logits).softmax(dim=1).gather(1, y[:, None]).squeeze(1)


def kl(target: Tensor, logits: Tensor, tau: float = 1.0) -> Tensor:
    """KL(softmax(target / tau) || softmax(logits / tau)) per sample: (B, C), (B, C) -> (B,)."""
    # Not reduced, so that methods can weigh samples; `.mean()` is the "batchmean" reduction.
    log_p = F.log_softmax(at_least_float32(target) / tau, dim=1)
    log_q = F.log_softmax(at_least_float32(logits) / tau, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__)
