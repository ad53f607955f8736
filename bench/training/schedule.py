"""Learning-rate schedules."""

from __future__ import annotations

import math

from leaderboards.schema.spec import Training

# Share of the steps in which the one-cycle schedule rises.
RISING_SHARE = 0.3


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Return the learning rate of one of `steps` steps.

    The rate falls at the milestones, or rises and falls once.
    """
    progress = step / steps
    if training.schedule == "multistep":
        falls = [0.1 for milestone in training.milestones if progress >= milestone]
        return training.lr * math.prod(falls)
    rising = (progress + 1 / steps) / RISING_SHARE
    falling = (1 - progress) / (1 - RISING_SHARE)
    return training.lr * min(rising, falling, 1.0)
