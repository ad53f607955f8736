"""The spec of a run: everything that can alter its result. Its hash names the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from bench.protocol.suites import Training
from leaderboards.schema import fields


@dataclass(frozen=True)
class Spec:
    """One training run and its evaluation, resolved to plain values."""

    # name@version
    suite: str
    role: Literal["student", "teacher"]
    dataset: str
    arch: str
    method: str
    # All hyper-parameters of the method.
    hyper: dict[str, Any]
    # Role -> identity, which ends in a hash.
    teachers: dict[str, str]
    seed: int
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
    # Trials of the search that found the values. A tuned row is another row, also where the
    # defaults won.
    tuned: int = 0

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:16]

    def json(self) -> str:
        """Return the canonical JSON."""
        values = dataclasses.asdict(self)
        if not self.tuned:
            # Records from before there were searches keep their names.
            del values["tuned"]
        return json.dumps(values, sort_keys=True)

    @property
    def teacher(self) -> str:
        """The teachers' names without their hashes, for people."""
        return fields.join_teachers(self.teachers)

    @property
    def label(self) -> str:
        """A short name for people, unique in a grid except for the variant."""
        return f"{self.dataset} {self.arch} {self.method} seed {self.seed}"

    def flat(self) -> dict[str, Any]:
        """Return one level for MLflow's parameters. Dots join nested names."""
        return dict(flatten_names("", dataclasses.asdict(self)))


def flatten_names(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for each leaf of nested dictionaries."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten_names(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value
