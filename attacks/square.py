"""Square of torchattacks on the margin: in l-inf with several queries in one forward pass, in L2 as in the official code.

Andriushchenko et al., "Square Attack", ECCV 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
import torchattacks
from torch import Tensor
from torch.nn.functional import pad

AHEAD = 8  # queries that are tried together at most: what follows one that is taken was tried for nothing
ENOUGH = 512  # images in a forward pass, from which on more are not faster; without gradients they fit in memory
EVEN = (
    16  # forward passes take a multiple of so many images: the libraries prepare for each size anew
)

Window = tuple[tuple[EllipsisType, slice, slice], Tensor]


@dataclass(frozen=True)
class Search:
    """Images that still stand: the best found, its margin, the bounds of its pixels and the label of each."""

    best: Tensor
    margin: Tensor
    low: Tensor
    high: Tensor
    y: Tensor

    def of(self, rows: Tensor) -> Search:
        return Search(*(value[rows] for value in vars(self).values()))

    def tried(self, windows: list[Window]) -> tuple[Tensor, Tensor]:
        """What each window would make of each image: (Q, B, C, H, W), and whether that is another image: (Q, B)."""
        tried = self.best.expand(len(windows), *self.best.shape).clone()
        moved = torch.empty(tried.shape[:2], dtype=torch.bool, device=tried.device)
        for images, other, (where, change) in zip(tried, moved, windows, strict=True):
            before = self.best[where]
            images[where] = (before + change).clamp(self.low[where], self.high[where])
            other.copy_((images[where] != before).flatten(1).any(dim=1))
        return tried, moved


class Square(torchattacks.Square):  # type: ignore[misc]
    """Square in l-inf, query by query the same search, with fewer and fuller forward passes.

    A query, which is one window of one sign for all images, does not depend on the answers to those before. So some are
    tried together, as if none of them was taken; where one is, those after it are tried again. A query that leaves an
    image as it is, which half of all windows of a pixel do with one channel and an eighth with three, is not tried.
    """

    def attack_single_run(self, x: Tensor, y: Tensor) -> tuple[None, Tensor]:
        """The search from correctly classified images x: (B, C, H, W); what is broken is not moved any further."""
        _, channels, _, width = x.shape
        with torch.no_grad():
            found = (x + self.eps * self.random_choice([len(x), channels, 1, width])).clamp(0, 1)
            low, high = (x - self.eps).clamp(min=0), (x + self.eps).clamp(max=1)
            left = torch.arange(len(x), device=x.device)
            search = Search(found.clone(), self._margin(found, y, left), low, high, y)
            done = 0
            while True:
                standing = search.margin > 0
                if not standing.all():
                    found[left] = search.best
                    left, search = left[standing], search.of(standing)
                if done == self.n_queries or not len(left):
                    break
                count = min(max(ENOUGH // len(left), 1), AHEAD, self.n_queries - done)
                self._ask(
                    [self._window(query, x[0]) for query in range(done, done + count)], search
                )
                done += count
            found[left] = search.best
        return None, found

    def _window(self, query: int, image: Tensor) -> Window:
        """Where a query changes every image, and by how much: (C, 1, 1)."""
        channels, height, width = image.shape
        side = max(round(math.sqrt(self.p_selection(query) * height * width)), 1)
        top, left = (int(self.random_int(0, size - side)) for size in (height, width))
        where = (..., slice(top, top + side), slice(left, left + side))
        return where, 2 * self.eps * self.random_choice([channels, 1, 1])

    def _ask(self, windows: list[Window], search: Search) -> None:
        """Queries one after the other, for images that all still stand."""
        order = torch.arange(len(windows), device=search.best.device)[:, None]
        asked = torch.zeros_like(search.y)  # queries answered, by image
        left, part = torch.arange(len(asked), device=asked.device), search
        while len(left):
            tried, moved = part.tried(windows)
            rows = (moved & (order >= asked[left])).flatten().nonzero().squeeze(1)
            margin = torch.full_like(moved, torch.inf, dtype=part.margin.dtype)
            margin.view(-1)[rows] = self._margin(
                tried.flatten(0, 1), part.y.repeat(len(windows)), rows
            )
            better = margin < part.margin
            first = better.int().argmax(dim=0)
            taken = better.any(dim=0).nonzero().squeeze(1)
            left, first = left[taken], first[taken]
            search.best[left], search.margin[left] = tried[first, taken], margin[first, taken]
            asked[left] = first + 1
            left = left[(search.margin[left] > 0) & (asked[left] < len(windows))]
            part = search.of(left)

    def _margin(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """The true class's logit above the largest other one, of the images in these rows."""
        if not len(rows):
            return x.new_zeros(0)
        even = pad(rows, (0, -len(rows) % EVEN))
        margin: Tensor = self.margin_and_loss(x.index_select(0, even), y[even])[0][: len(rows)]
        return margin


class SquareL2(torchattacks.Square):  # type: ignore[misc]
    """Square in L2 with the norm of its windows taken channel by channel, as in the official code (D10).

    Every query asks for three norms: of the perturbation, of its two windows, of the new perturbation.
    """

    def attack_single_run(self, x: Tensor, y: Tensor) -> Any:
        self.asked = 0
        return super().attack_single_run(x, y)

    def lp_norm(self, x: Tensor) -> Tensor:
        self.asked += 1
        dims = (2, 3) if self.asked % 3 == 2 else (1, 2, 3)
        norm: Tensor = (x**2).sum(dim=dims, keepdim=True).sqrt()
        return norm
