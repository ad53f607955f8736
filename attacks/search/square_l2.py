"""Square in L2, in slots. The images of a batch go through the queries side by side.

Andriushchenko et al., "Square Attack", ECCV 2020. Signs are drawn for the robust images of a batch,
so what an image gets depends on the others: they begin together, and each slot knows where in the
stream of its batch it is.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor

from attacks.build import Settings, build_attack
from attacks.catalog import Attack
from attacks.components.margin_attacks import logit_margin
from attacks.components.square import unit_length, window_side_l2
from attacks.search.batches import Batch, BatchedSearch
from attacks.search.fooling import keep_fooling, per_image
from attacks.search.passes import Passes, State
from attacks.search.slots import Job

# A step takes several passes, so that the batches fill them.
PASSES = 4
# Numbers of a query before the signs: two windows, and whether the pattern is transposed.
HEAD = 5


class SquareL2Search(BatchedSearch):
    """Square in L2: a query moves the norm of one window to another one."""

    steps_between_looks = 5
    passes_per_step = 1
    together = True

    def __init__(self, attack: Attack, passes: Passes, settings: Settings, x: Tensor) -> None:
        super().__init__(attack, passes, settings, x)
        self.channels, self.height, self.width = x.shape[1:]
        shape = self.channels, self.height, self.width
        # Of torchattacks: its pattern of a window.
        self.official: Any = build_attack(attack, passes.model, settings)
        sides = [window_side_l2(query, shape) for query in range(attack.steps)]
        self.sides = torch.tensor([*sides, sides[-1]], device=x.device)
        self.patterns = self._pattern_table(sorted(set(sides)))
        self.pixels = torch.arange(self.height, device=x.device)
        self.largest_batch = max(len(batch.images) for batch in self.batches)
        numbers = attack.steps * (HEAD + self.largest_batch * self.channels)
        # Slots that are done read on, where nothing was drawn.
        self.streams = torch.zeros(len(self.batches), numbers, device=x.device)
        self.begin_rounds()

    def capacity(self) -> int:
        # The images of a batch begin in one step.
        return max(PASSES * self.passes.size, self.largest_batch)

    def _pattern_table(self, sides: list[int]) -> Tensor:
        """Return the pattern of each side in a corner, and transposed: (H + 1, 2, H * W)."""
        table = torch.zeros(self.height + 1, 2, self.height, self.width, device=self.x.device)
        for side in sides:
            pattern = self._pattern(side)
            table[side, 0, :side, :side] = pattern
            table[side, 1, :side, :side] = pattern.T
        return table.flatten(2)

    def _pattern(self, side: int) -> Tensor:
        """Return the pattern of a window as it is drawn in half of the cases: (side, side)."""
        halves = (
            self.official.eta_rectangles(side // 2, side),
            self.official.eta_rectangles(side - side // 2, side),
        )
        pattern: Tensor = torch.cat((halves[0], -1.0 * halves[1]))
        return pattern / (pattern**2).sum(dim=(0, 1), keepdim=True).sqrt()

    def draw(self, batch: Batch, count: int) -> Tensor:
        """Draw a grid of windows over each image, and the stream of the queries: (n, C, H, W)."""
        start = torch.zeros(count, *self.x.shape[1:], device=self.x.device)
        side = self.height // 5
        margin = (self.height - side * 5) // 2
        pattern = self._pattern(side)
        for row, column in product(range(self.height // side), range(self.width // side)):
            transposed = torch.rand([1], generator=batch.host) > 0.5
            signs = 2 * torch.rand(count, self.channels, 1, 1, generator=batch.host) - 1
            window = pattern.T if transposed else pattern
            top, left = margin + row * side, margin + column * side
            part = start[:, :, top : top + side, left : left + side]
            part += window * signs.sign().to(self.x.device)
        numbers = torch.rand(self.steps * (HEAD + count * self.channels), generator=batch.host)
        self.streams[batch.number, : len(numbers)] = numbers.to(self.x.device)
        return start

    def begin(self, jobs: list[Job], x: Tensor) -> State:
        start = (x + unit_length(self.starts(jobs)) * self.eps).clamp(0, 1)
        zeros = torch.zeros(len(jobs), dtype=torch.long, device=x.device)
        return {
            "batch": self.to_tensor(job.batch for job in jobs),
            "position": self.to_tensor(job.position for job in jobs),
            "query": zeros, "offset": zeros, "tried": start, "best": start,
            "lowest": torch.full_like(zeros, torch.inf, dtype=x.dtype),
        }  # fmt: skip

    def step(self, state: State) -> State:
        logits = self.passes.logits(state["tried"])
        margin = -logit_margin(logits, state["y"])
        better = (margin < state["lowest"]) & ~state["done"]
        best = torch.where(per_image(better), state["tried"], state["best"])
        lowest = torch.where(better, margin, state["lowest"])
        robust = (lowest > 0) & ~state["done"]
        same_batch = (state["batch"] == state["batch"][:, None]) & robust
        before = same_batch & (state["position"] < state["position"][:, None])
        tried = self._next_images(state, best, before.sum(dim=1))
        used = HEAD + same_batch.sum(dim=1) * self.channels
        query = state["query"] + 1
        # The pass of the start comes before the first query.
        return keep_fooling(state, state["tried"], logits, math.inf, "L2") | {
            "best": best, "lowest": lowest, "tried": tried, "query": query,
            "offset": state["offset"] + used, "done": query > self.steps,
        }  # fmt: skip

    def _next_images(self, state: State, best: Tensor, rank: Tensor) -> Tensor:
        """Return the images of the next query, (B, C, H, W). rank: (B,), in the batch."""
        x, eps, channels = state["x"], self.eps, self.channels
        side = self.sides[state["query"].clamp(max=self.steps)]
        head = self._numbers(state, torch.arange(HEAD, device=x.device))
        room = torch.stack([self.height - side, self.width - side] * 2, dim=1)
        top, left, emptied_top, emptied_left = (room * head[:, :4]).floor().long().unbind(1)
        own = HEAD + rank[:, None] * channels + torch.arange(channels, device=x.device)
        signs = (2 * self._numbers(state, own) - 1).sign()[..., None, None]
        region, emptied = (
            self._inside(top, left, side),
            self._inside(emptied_top, emptied_left, side),
        )
        pattern = self._placed(top, left, side, head[:, 4] > 0.5) * region
        delta = best - x
        in_region = delta * region
        window = pattern * signs + in_region / (1e-12 + _norm(in_region, (2, 3)))
        unused = (eps**2 - _norm(delta, (1, 2, 3)) ** 2).clamp(min=0)
        budget = (unused / channels + _norm(delta * (region | emptied), (2, 3)) ** 2).sqrt()
        window = window / (1e-12 + _norm(window, (2, 3))) * budget
        delta = torch.where(region, window, delta * ~emptied)
        return (x + unit_length(delta) * eps).clamp(0, 1)

    def _numbers(self, state: State, columns: Tensor) -> Tensor:
        """Return numbers of each slot's stream, counted from its query: (B, n)."""
        # Behind the last query there are none, and nothing depends on them.
        columns = (state["offset"][:, None] + columns).clamp(max=self.streams.shape[1] - 1)
        return self.streams.view(-1)[state["batch"][:, None] * self.streams.shape[1] + columns]

    def _inside(self, top: Tensor, left: Tensor, side: Tensor) -> Tensor:
        """Return whether a pixel lies in a window: (B, 1, H, W)."""
        rows, columns = self._from_corner(top, left)
        side = side[:, None]
        in_rows, in_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
        return (in_rows[:, :, None] & in_columns[:, None])[:, None]

    def _placed(self, top: Tensor, left: Tensor, side: Tensor, transposed: Tensor) -> Tensor:
        """Return the pattern of each window where the window lies: (B, 1, H, W)."""
        rows, columns = self._from_corner(top, left)
        pixels = rows[:, :, None].clamp(min=0) * self.width + columns[:, None].clamp(min=0)
        pattern = self.patterns[side, transposed.long()].gather(1, pixels.flatten(1))
        return pattern.view(-1, 1, self.height, self.width)

    def _from_corner(self, top: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and columns of the pixels as seen from a corner: (B, H), (B, W)."""
        return self.pixels - top[:, None], self.pixels - left[:, None]


def _norm(delta: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (delta**2).sum(dim=dims, keepdim=True).sqrt()
