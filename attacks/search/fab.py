"""FAB in slots: each holds a pair of an image and a target.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
ICML 2020.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from attacks.build import Settings
from attacks.catalog import Attack
from attacks.components.fab import (
    BACK_STEP,
    Projection,
    logit_gap,
    projection_l2,
    projection_linf,
    step_to_plane,
)
from attacks.search.fooling import keep_fooling, per_image
from attacks.search.passes import Passes, State
from attacks.search.slots import Job, Search

# Rounds of Newton's method, more than any projection was seen to need (test_search.py).
ROUNDS = 24


class FABSearch(Search):
    """FAB towards the second to the tenth class of the clean prediction. Nothing is random."""

    passes_per_step = 3

    def __init__(self, attack: Attack, passes: Passes, settings: Settings, x: Tensor) -> None:
        super().__init__(attack, passes, settings, x)
        self.targets = self.likeliest(settings.num_targets)
        self.jobs, self.rounds_per_image = self._pairs(), settings.num_targets
        self.project: Projection = partial(projection_linf, rounds=ROUNDS)
        if settings.norm == "L2":
            self.project = projection_l2

    def _pairs(self) -> Iterator[Job]:
        """Yield the first target of all images, then the second: later ones may not be needed."""
        for target in range(self.targets.shape[1]):
            for image in range(len(self.x)):
                yield Job(image, target=target)

    def next_jobs(self, room: int) -> list[Job]:
        return [*islice(self.jobs, room)]

    def begin(self, jobs: list[Job], x: Tensor) -> State:
        age = torch.zeros(len(jobs), dtype=torch.long, device=x.device)
        return {"target": self.pick(self.targets, jobs), "point": x, "age": age}

    def step(self, state: State) -> State:
        gap = partial(logit_gap, y=state["y"], target=state["target"])
        _, gaps, gradient = self.passes.gradient(state["point"], gap)
        moved = step_to_plane(state["point"], state["x"], gaps, gradient, self.project, self.norm)
        logits = self.passes.logits(moved)
        wrong = logits.argmax(dim=1) != state["y"]
        fraction = per_image(torch.where(wrong, BACK_STEP, 1.0))
        age = state["age"] + 1
        return keep_fooling(state, moved, logits, self.eps, self.norm) | {
            "point": torch.lerp(state["x"], moved, fraction), "age": age, "done": age >= self.steps,
        }  # fmt: skip
