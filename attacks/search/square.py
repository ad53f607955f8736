"""Square in slots: each image is at its own query of its batch's windows.

Andriushchenko et al., "Square Attack", ECCV 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attacks.build import Settings
from attacks.catalog import Attack
from attacks.components.margin_attacks import logit_margin
from attacks.components.square import window_side
from attacks.search.batches import Batch, BatchedSearch
from attacks.search.fooling import keep_fooling, per_image
from attacks.search.passes import Passes, State
from attacks.search.slots import Job

# Queries that an image looks ahead for one that changes it: half of those of a pixel may not.
QUERIES_AHEAD = 8


class SquareSearch(BatchedSearch):
    """Square in l-inf. A query is one window of one sign for all images of a batch.

    The windows do not depend on answers, so all are drawn at the start. A window that changes
    nothing, because its signs are there already, is not passed.
    """

    steps_between_looks = 20
    passes_per_step = 1

    def __init__(self, attack: Attack, passes: Passes, settings: Settings, x: Tensor) -> None:
        super().__init__(attack, passes, settings, x)
        self.channels, self.height, self.width = x.shape[1:]
        sides = [window_side(query, self.height * self.width) for query in range(attack.steps)]
        self.sides = torch.tensor(sides, device=x.device)
        self.row_numbers = torch.arange(self.height, device=x.device).view(1, 1, 1, -1, 1)
        self.column_numbers = torch.arange(self.width, device=x.device).view(1, 1, 1, 1, -1)
        # Of each batch and query: top, left, and a sign for each channel.
        shape = len(self.batches), attack.steps, 2 + self.channels
        self.windows = torch.empty(shape, device=x.device)
        self.begin_rounds()

    def draw(self, batch: Batch, count: int) -> Tensor:
        """Draw stripes and windows, on the CPU; return the signs of stripes: (n, C, 1, W)."""
        shape = (count, self.channels, 1, self.width)
        stripes = (2 * torch.rand(shape, generator=batch.host) - 1).sign()
        # One number after the other, in calls as the official ones: top, left, signs.
        drawn = torch.rand(self.steps, 2 + self.channels, generator=batch.host)
        sides = self.sides.cpu()
        drawn[:, 0] = ((self.height - sides) * drawn[:, 0]).floor()
        drawn[:, 1] = ((self.width - sides) * drawn[:, 1]).floor()
        drawn[:, 2:] = (2 * drawn[:, 2:] - 1).sign()
        self.windows[batch.number] = drawn.to(self.x.device)
        return stripes.to(self.x.device)

    def begin(self, jobs: list[Job], x: Tensor) -> State:
        start = (x + self.eps * self.starts(jobs)).clamp(0, 1)
        query = torch.full((len(jobs),), -1, device=x.device)
        return {
            "batch": self.to_tensor(job.batch for job in jobs), "query": query,
            "tried": start, "best": start,
            "lowest": torch.full_like(query, torch.inf, dtype=x.dtype),
        }  # fmt: skip

    def step(self, state: State) -> State:
        logits = self.passes.logits(state["tried"])
        margin = -logit_margin(logits, state["y"])
        better = margin < state["lowest"]
        best = torch.where(per_image(better), state["tried"], state["best"])
        query, tried = self._next_query(state, best)
        return keep_fooling(state, state["tried"], logits, math.inf, "Linf") | {
            "best": best, "lowest": torch.where(better, margin, state["lowest"]),
            "query": query, "tried": tried, "done": query >= self.steps,
        }  # fmt: skip

    def _next_query(self, state: State, best: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next query that changes `best`, (B,), and its images (B, C, H, W)."""
        ahead = state["query"][:, None] + torch.arange(1, QUERIES_AHEAD + 1, device=best.device)
        window = self.windows[state["batch"][:, None], ahead.clamp(max=self.steps - 1)]
        inside = self._inside(ahead, window)
        signs = window[:, :, 2:, None, None]
        low, high = (state["x"] - self.eps).clamp(min=0), (state["x"] + self.eps).clamp(max=1)
        movable = torch.where(signs > 0, (best < high)[:, None], (best > low)[:, None])
        changes = (movable & inside).flatten(2).any(dim=2)
        # Where none of them does, the last one is passed.
        changes[:, -1] = True
        chosen = changes.int().argmax(dim=1)
        index = chosen.view(-1, 1, 1, 1, 1)
        chosen_inside = inside.take_along_dim(index, 1).squeeze(1)
        chosen_signs = signs.take_along_dim(index, 1).squeeze(1)
        moved = torch.minimum(torch.maximum(best + 2 * self.eps * chosen_signs, low), high)
        return state["query"] + 1 + chosen, torch.where(chosen_inside, moved, best)

    def _inside(self, ahead: Tensor, window: Tensor) -> Tensor:
        """Return whether a pixel lies in the window of each query: (B, Q, 1, H, W)."""
        side = self.sides[ahead.clamp(max=self.steps - 1)][..., None, None, None]
        top, left = window[..., 0, None, None, None], window[..., 1, None, None, None]
        rows, columns = self.row_numbers, self.column_numbers
        in_rows = (rows >= top) & (rows < top + side)
        return in_rows & (columns >= left) & (columns < left + side)
