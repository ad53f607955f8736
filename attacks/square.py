"""Square of torchattacks on the margin: in l-inf with several queries in one forward pass, in L2 as in the official code.

Andriushchenko et al., "Square Attack", ECCV 2020.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torchattacks
from torch import Tensor
from torch.nn.functional import pad

AHEAD = 8  # queries that are tried together at most: what follows one that is taken was tried for nothing
ENOUGH = 512  # images in a forward pass, from which on more are not faster; without gradients they fit in memory
EVEN = 16  # forward passes take a multiple of so many images: the libraries prepare for each size anew


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
            best = (x + self.eps * self.random_choice([len(x), channels, 1, width])).clamp(0, 1)
            margin = self._margin(best, y)
            done = 0
            while done < self.n_queries and (margin > 0).any():
                rows = (margin > 0).nonzero().squeeze(1)
                count = min(max(ENOUGH // len(rows), 1), AHEAD, self.n_queries - done)
                windows = torch.stack([self._window(query, x[0]) for query in range(done, done + count)])
                best[rows], margin[rows] = self._answered(windows, x[rows], y[rows], best[rows], margin[rows])
                done += count
        return None, best

    def _window(self, query: int, image: Tensor) -> Tensor:
        """The change that a query adds to every image: (C, H, W)."""
        channels, height, width = image.shape
        side = max(round(math.sqrt(self.p_selection(query) * height * width)), 1)
        top, left = (int(self.random_int(0, size - side)) for size in (height, width))
        change = torch.zeros_like(image)
        change[:, top : top + side, left : left + side] = 2 * self.eps * self.random_choice([channels, 1, 1])
        return change

    def _answered(self, windows: Tensor, x: Tensor, y: Tensor, best: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
        """The images and margins after queries (Q, C, H, W), one after the other, for images that all still stand."""
        best, margin = best.clone(), margin.clone()
        asked = torch.zeros(len(x), dtype=torch.long, device=x.device)  # queries answered, by image
        order = torch.arange(len(windows), device=x.device)[:, None]
        left = torch.arange(len(x), device=x.device)
        while len(left):
            tried = (best[left] + windows[:, None]).clamp(x[left] - self.eps, x[left] + self.eps).clamp(0, 1)
            moved = (tried != best[left]).flatten(2).any(dim=2) & (order >= asked[left])
            found = margin.new_full(moved.shape, torch.inf)
            found[moved] = self._margin(tried[moved], y[left].expand(moved.shape)[moved])
            better = found < margin[left]
            first = better.int().argmax(dim=0)
            taken = better.any(dim=0).nonzero().squeeze(1)
            left, first, tried, found = left[taken], first[taken], tried[:, taken], found[:, taken]
            column = torch.arange(len(left), device=x.device)
            best[left], margin[left], asked[left] = tried[first, column], found[first, column], first + 1
            left = left[(margin[left] > 0) & (asked[left] < len(windows))]
        return best, margin

    def _margin(self, x: Tensor, y: Tensor) -> Tensor:
        """The true class's logit above the largest other one."""
        if not len(x):
            return x.new_zeros(0)
        rows = pad(torch.arange(len(x), device=x.device), (0, -len(x) % EVEN))
        margin: Tensor = self.margin_and_loss(x[rows], y[rows])[0][: len(x)]
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
