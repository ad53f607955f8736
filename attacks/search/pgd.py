"""PGD in slots: its last iterate counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.build import Settings, pgd_step_size
from attacks.catalog import Attack
from attacks.components.margin_attacks import l2_norm, logit_margin
from attacks.search.batches import Batch, BatchedSearch
from attacks.search.passes import Passes, State
from attacks.search.slots import Job

TINY = 1e-10


class PGDSearch(BatchedSearch):
    """PGD on the cross-entropy or, as "cw", on the margin, from a random start."""

    keeps_last = True

    def __init__(self, attack: Attack, passes: Passes, settings: Settings, x: Tensor) -> None:
        super().__init__(attack, passes, settings, x)
        self.on_margin, self.alpha = attack.kind == "cw", pgd_step_size(attack, settings)
        self.begin_rounds()

    def draw(self, batch: Batch, count: int) -> Tensor:
        """Draw the starts, on the images' device: (n, C, H, W)."""
        noise = torch.empty((count, *self.x.shape[1:]), device=self.x.device)
        if self.norm == "L2" and not self.on_margin:
            noise.normal_(generator=batch.device)
            length = l2_norm(noise)
            radius = torch.zeros_like(length).uniform_(0, 1, generator=batch.device)
            return noise * (radius / length * self.eps)
        if self.on_margin:
            noise.uniform_(-1, 1, generator=batch.device)
            return self._project(self.eps * noise)
        return noise.uniform_(-self.eps, self.eps, generator=batch.device)

    def _project(self, delta: Tensor) -> Tensor:
        if self.norm == "Linf":
            return delta.clamp(-self.eps, self.eps)
        factor = self.eps / (l2_norm(delta) + TINY)
        return delta.mul(factor.clamp(max=1))

    def begin(self, jobs: list[Job], x: Tensor) -> State:
        start = (x + self.starts(jobs)).clamp(0, 1)
        age = torch.zeros(len(jobs), dtype=torch.long, device=x.device)
        return {"candidate": start, "age": age}

    def step(self, state: State) -> State:
        def loss(logits: Tensor) -> Tensor:
            if self.on_margin:
                return logit_margin(logits, state["y"])
            return F.cross_entropy(logits, state["y"], reduction="none")

        adv, x = state["candidate"], state["x"]
        logits, _, gradient = self.passes.gradient(adv, loss)
        if self.norm == "Linf":
            direction = gradient.sign()
        else:
            direction = gradient / (l2_norm(gradient) + TINY)
        moved = (x + self._project(adv + self.alpha * direction - x)).clamp(0, 1)
        # A slot whose run is at its end waits for its result to be read.
        ended = state["done"].view(-1, 1, 1, 1)
        age = state["age"] + 1
        return {
            "candidate": torch.where(ended, adv, moved), "age": age, "done": age >= self.steps,
            "finite": state["finite"] & logits.isfinite().all(dim=1),
        }  # fmt: skip
