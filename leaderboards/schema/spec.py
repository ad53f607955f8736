"""The spec of a run: everything that can alter its result. Its hash names the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field

from leaderboards.schema import fields

# Later fields of Spec. Left out of the JSON at these values, so that earlier specs keep their ids.
LATER_FIELDS: dict[str, Any] = {"norm": "Linf", "tuned": 0}
# Those of Training.
LATER_TRAINING: dict[str, Any] = {
    "nesterov": False,
    "drop_last": True,
    "normalise": True,
    "clamp_start": True,
}
# Values outside these ranges are refused in suite files and records.
Count = Annotated[int, Ge(1), Le(1_000_000)]
Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True)
class Training:
    """How every network of a suite is trained, teacher and students alike.

    milestones, swa_start: fractions of the epochs; at each milestone the rate falls tenfold, or
    from the first one on along half a cosine. averaging: the averages of the weights kept beside
    best and last. validate_every: epochs. awp: size of the adversarial weight perturbation,
    relative to the weights. drop_last: leave out an epoch's incomplete last batch. normalise: by
    the data set's mean and standard deviation inside the network. clamp_start: training attacks
    begin inside [0, 1].
    """

    epochs: Count
    batch: Count = 128
    lr: Annotated[float, Gt(0), Le(100)] = 0.1
    momentum: Share = 0.9
    weight_decay: Share = 5e-4
    schedule: Literal["multistep", "onecycle", "cosine"] = "multistep"
    milestones: tuple[Share, ...] = (0.5, 0.75)
    averaging: tuple[Literal["ema", "swa"], ...] = ("ema", "swa")
    ema_decay: Share = 0.999
    swa_start: Share = 0.5
    validate_every: Count = 1
    awp: Share = 0.0
    nesterov: bool = False
    drop_last: bool = True
    normalise: bool = True
    clamp_start: bool = True

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum")


@dataclass(frozen=True)
class Spec:
    """One training run and its evaluation, resolved to plain values.

    A new field is a new version of the record (schema/record.py).
    """

    # Of a spec in a record.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    # name@version
    suite: Annotated[str, Field(pattern=f"^{fields.EXPERIMENT.pattern}$")]
    role: Literal["student", "teacher"]
    dataset: str
    arch: str
    method: str
    # All hyper-parameters of the method.
    hyper: dict[str, Any]
    # Role -> identity, which ends in a hash.
    teachers: dict[str, str]
    seed: Annotated[int, Ge(0), Lt(2**63)]
    training: Training
    eps: float
    inner_step: float
    inner_steps: int
    attacks: tuple[str, ...]
    full_checkpoints: tuple[str, ...]
    precision: Literal["fp32", "bf16"]
    limit_train: int | None = None
    limit_val: int | None = None
    limit_test: int | None = None
    limit_aa: int | None = None
    # Of eps and inner_step.
    norm: fields.Norm = "Linf"
    # Trials of the search that found the values. A tuned row is another row, also where the
    # defaults won.
    tuned: int = 0

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:16]

    def json(self) -> str:
        """Return the canonical JSON."""
        return json.dumps(self.values, sort_keys=True)

    @property
    def values(self) -> dict[str, Any]:
        """The fields as plain values, as a record has them."""
        # dataclasses.asdict copies every value, which takes a tenth of the time of 10,000 records.
        training = without_defaults(vars(self.training), LATER_TRAINING)
        return without_defaults(vars(self) | {"training": training}, LATER_FIELDS)

    @property
    def teacher(self) -> str:
        """The teachers' names without their hashes, for people."""
        return fields.join_teachers(self.teachers)

    @property
    def identity_tags(self) -> dict[str, str]:
        """The tags of a run that follow from its spec."""
        values = (self.role, self.id, self.dataset, self.method, self.arch, self.teacher)
        return dict(zip(fields.IDENTITY_TAGS, (*values, str(self.seed)), strict=True))

    @property
    def record_name(self) -> str:
        """The name of a record's file: readable, in plain ASCII."""
        name = f"{self.suite}-{self.dataset}-{self.arch}-{self.method}-seed{self.seed}"
        return f"{fields.file_name(name)[:150]}-{self.id[:8]}.json"

    @property
    def label(self) -> str:
        """A short name for people, unique in a grid except for the variant."""
        return f"{self.dataset} {self.arch} {self.method} seed {self.seed}"

    def flat(self) -> dict[str, Any]:
        """Return one level for MLflow's parameters. Dots join nested names."""
        values = vars(self) | {"training": vars(self.training)}
        return dict(flatten_names(LATER_FIELDS | values))


def without_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return values without those that equal a default."""
    return {
        name: value
        for name, value in values.items()
        if name not in defaults or value != defaults[name]
    }


def flatten_names(
    values: Mapping[str, Any], separator: str = ".", prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (joined name, value) for each leaf of nested dictionaries."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten_names(value, separator, f"{prefix}{key}{separator}")
        else:
            yield f"{prefix}{key}", value
