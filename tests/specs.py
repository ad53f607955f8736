"""A spec for tests and measurements that train without a suite."""

from __future__ import annotations

import dataclasses
from typing import Any

from leaderboards.schema.spec import Spec, Training


def make_spec(training: Training, **changes: Any) -> Spec:
    """Return the spec of a student of the digits that no attack evaluates; `changes` are fields."""
    spec = Spec(
        suite="any",
        role="student",
        dataset="digits",
        arch="resnet8-w4",
        method="any",
        hyper={},
        teachers={},
        seed=0,
        training=training,
        eps=0.15,
        inner_step=0.06,
        inner_steps=2,
        attacks=(),
        full_checkpoints=(),
        precision="fp32",
    )
    return dataclasses.replace(spec, **changes)
