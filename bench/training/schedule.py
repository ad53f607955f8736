"""Learning-rate schedules."""

from __future__ import annotations

import math

from leaderboards.schema.spec import Training

# Share of the steps in which the one-cycle schedule rises.
RISING_SHARE = 0.3


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Return the learning rate of one of `steps` steps.

    The rate falls at the milestones, along half a cosine from the first one on, or rises and falls
    once.
    """
    progress = step / steps
    if training.schedule == "multistep":
        falls = [0.1 for milestone in training.milestones if progress >= milestone]
        return training.lr * math.prod(falls)
    if training.schedule == "cosine":
        start = training.milestones[0] if training.milestones else 0.0
        fallen = max(progress - start, 0.0) / max(1 - start, 1 / steps)
        return training.lr * (1 + math.cos(math.pi * fallen)) / 2
    rising = (progress + 1 / steps) / RISING_SHARE
    falling = (1 - progress) / (1 - RISING_SHARE)
    return training.lr * min(rising, falling, 1.0)
