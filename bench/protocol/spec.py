"""A Spec says everything that can alter a result; its hash names the run. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from bench.protocol.suites import Training
from leaderboards.schema import fields


@dataclass(frozen=True)
class Spec:
    """One training run and its evaluation: a cell of the grid, resolved to plain values."""

    suite: str  # name@version
    role: Literal["student", "teacher"]
    dataset: str
    arch: str
    method: str
    hyper: dict[str, Any]  # the method's hyper-parameters, all of them
    teachers: dict[str, str]  # role -> identity, which ends in a hash
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
    tuned: int = 0  # trials of the search that found its values: a tuned row is another, also where the defaults won

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON: equal specs, equal names."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:16]

    def json(self) -> str:
        """Canonical; `tuned` only where there was a search, so that records from before it existed keep their names."""
        values = dataclasses.asdict(self)
        return json.dumps(
            values if self.tuned else {k: v for k, v in values.items() if k != "tuned"},
            sort_keys=True,
        )

    @property
    def teacher(self) -> str:
        """The teachers' names without their hashes, for people."""
        return fields.join_teachers(self.teachers)

    @property
    def label(self) -> str:
        """A short name for people, unique among the cells of a grid but for the variant."""
        return f"{self.dataset} {self.arch} {self.method} seed {self.seed}"

    def flat(self) -> dict[str, Any]:
        """One level, for MLflow's parameters: nested names are joined by dots."""
        return dict(_flatten("", dataclasses.asdict(self)))


def _flatten(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [
        pair
        for key, item in value.items()
        for pair in _flatten(f"{prefix}.{key}" if prefix else key, item)
    ]
