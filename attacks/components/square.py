"""Square of torchattacks on the margin: in l-inf with several queries in a pass, in L2 as official.

Andriushchenko et al., "Square Attack", ECCV 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import EllipsisType, SimpleNamespace

import torch
import torchattacks
from torch import Tensor
from torch.nn.functional import pad

# Queries tried together: those after an accepted one are tried in vain.
MAX_QUERIES_PER_PASS = 8
# Images in a pass: larger passes are not faster. Without gradients they fit in memory.
MAX_IMAGES_PER_PASS = 512
# The libraries prepare for each new batch size, so passes are filled up to a multiple.
BATCH_MULTIPLE = 16

# What torchattacks' schedule of window sizes asks for: its initial share, and no other budget.
SCHEDULE = SimpleNamespace(p_init=0.8, rescale_schedule=False)

Region = tuple[EllipsisType, slice, slice]
Window = tuple[Region, Tensor]


@dataclass(frozen=True)
class SearchState:
    """State of robust images: best candidates, bounds of their pixels, margins and labels (B,)."""

    best: Tensor
    low: Tensor
    high: Tensor
    margin: Tensor
    y: Tensor

    def select(self, rows: Tensor) -> SearchState:
        """Return the state of some images."""
        low, high = self.low[rows], self.high[rows]
        return SearchState(self.best[rows], low, high, self.margin[rows], self.y[rows])

    def apply_windows(self, windows: list[Window]) -> tuple[Tensor, Tensor]:
        """Return the candidates, (Q, B, C, H, W), and whether a window changes an image, (Q, B)."""
        candidates = self.best.expand(len(windows), *self.best.shape).clone()
        changed = torch.empty(candidates.shape[:2], dtype=torch.bool, device=candidates.device)
        for query, (region, change) in enumerate(windows):
            before = self.best[region]
            after = (before + change).clamp(self.low[region], self.high[region])
            candidates[query][region] = after
            changed[query] = (after != before).flatten(1).any(dim=1)
        return candidates, changed


class _SquareBase(torchattacks.Square):  # type: ignore[misc]
    """The window of a query, in both norms.

    From torchattacks: random_choice (signs), random_int, p_selection (the share of pixels of a
    query's window), margin_and_loss, and for L2 eta (a window).
    """

    def _draw_region(self, side: int, height: int, width: int) -> Region:
        top, left = int(self.random_int(0, height - side)), int(self.random_int(0, width - side))
        return (..., slice(top, top + side), slice(left, left + side))


class Square(_SquareBase):
    """Square in l-inf, query by query the same search, with fewer and fuller passes.

    A query is one window of one sign for all images. It does not depend on the answers to earlier
    ones, so several are tried together as if none is accepted; where one is, later ones are tried
    again. A window whose signs are there already changes nothing and is not passed: with one
    channel half of all windows of a pixel, with three an eighth.
    """

    def attack_single_run(self, x: Tensor, y: Tensor) -> tuple[None, Tensor]:
        """Search from correctly classified images x: (B, C, H, W), until they are fooled."""
        with torch.no_grad():
            stripes = self.random_choice([len(x), x.shape[1], 1, x.shape[3]])
            adv = (x + self.eps * stripes).clamp(0, 1)
            low, high = (x - self.eps).clamp(min=0), (x + self.eps).clamp(max=1)
            rows = torch.arange(len(x), device=x.device)
            search = SearchState(adv.clone(), low, high, self._margins(adv, y, rows), y)
            done = 0
            while True:
                robust = search.margin > 0
                if not robust.all():
                    adv[rows] = search.best
                    rows, search = rows[robust], search.select(robust)
                if done == self.n_queries or not len(rows):
                    break
                affordable = max(MAX_IMAGES_PER_PASS // len(rows), 1)
                count = min(affordable, MAX_QUERIES_PER_PASS, self.n_queries - done)
                windows = [self._draw_window(query, x[0]) for query in range(done, done + count)]
                self._run_queries(windows, search)
                done += count
            adv[rows] = search.best
        return None, adv

    def _draw_window(self, query: int, image: Tensor) -> Window:
        """Draw the region of a query and its change of every image: (C, 1, 1)."""
        channels, height, width = image.shape
        side = window_side(query, height * width)
        region = self._draw_region(side, height, width)
        return region, 2 * self.eps * self.random_choice([channels, 1, 1])

    def _run_queries(self, windows: list[Window], search: SearchState) -> None:
        """Answer queries one after the other for robust images; updates `search` in place."""
        order = torch.arange(len(windows), device=search.y.device)[:, None]
        answered = torch.zeros_like(search.y)
        rows, part = torch.arange(len(answered), device=answered.device), search
        while len(rows):
            candidates, changed = part.apply_windows(windows)
            # Queries that change the image and are not answered yet.
            pending = (changed & (order >= answered[rows])).flatten().nonzero().squeeze(1)
            margins = torch.full_like(changed, torch.inf, dtype=part.margin.dtype)
            labels = part.y.repeat(len(windows))
            margins.view(-1)[pending] = self._margins(candidates.flatten(0, 1), labels, pending)
            # Accept the first query that lowers the margin.
            better = margins < part.margin
            accepted = better.any(dim=0).nonzero().squeeze(1)
            first = better.int().argmax(dim=0)[accepted]
            rows = rows[accepted]
            search.best[rows] = candidates[first, accepted]
            search.margin[rows] = margins[first, accepted]
            answered[rows] = first + 1
            # Later queries of these images must be tried on the new candidate.
            rows = rows[(search.margin[rows] > 0) & (answered[rows] < len(windows))]
            part = search.select(rows)

    def _margins(self, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """Return the true logit minus the largest other one for the images in `rows`."""
        if not len(rows):
            return x.new_zeros(0)
        filled = pad(rows, (0, -len(rows) % BATCH_MULTIPLE))
        margins: Tensor = self.margin_and_loss(x.index_select(0, filled), y[filled])[0]
        return margins[: len(rows)]


def window_side(query: int, pixels: int) -> int:
    """Return the side of a query's window, by the official schedule for 10,000 queries."""
    share = torchattacks.Square.p_selection(SCHEDULE, query)
    return max(round(math.sqrt(share * pixels)), 1)


def window_side_l2(query: int, shape: tuple[int, int, int]) -> int:
    """Return the odd side of a query's window in L2, for images (C, H, W)."""
    # In the official order of operations: rounding may change the side.
    share = torchattacks.Square.p_selection(SCHEDULE, query)
    side = max(round(math.sqrt(share * math.prod(shape) / shape[0])), 3)
    return side + 1 - side % 2


class SquareL2(_SquareBase):
    """Square in L2 with the norm of its windows channel by channel, as in the official code.

    torchattacks sums that norm over channels (D10 in docs/lab/agreement.md). It uses one method for
    this norm and that of an image, so the search is written out here.
    """

    def attack_single_run(self, x: Tensor, y: Tensor) -> tuple[None, Tensor]:
        """Search from correctly classified images x: (B, C, H, W), until they are fooled."""
        with torch.no_grad():
            best = (x + unit_length(self._draw_start(x)) * self.eps).clamp(0, 1)
            margin = self.margin_and_loss(best, y)[0]
            for query in range(self.n_queries):
                rows = (margin > 0).nonzero().flatten()
                if not len(rows):
                    break
                candidates = self._draw_candidates(query, x[rows], best[rows])
                new_margin = self.margin_and_loss(candidates, y[rows])[0]
                better = new_margin < margin[rows]
                margin[rows[better]] = new_margin[better]
                best[rows[better]] = candidates[better]
        return None, best

    def _draw_start(self, x: Tensor) -> Tensor:
        """Draw a grid of windows over each image: (B, C, H, W)."""
        start, (height, width) = torch.zeros_like(x), x.shape[2:]
        side = height // 5
        margin = (height - side * 5) // 2
        for row in range(height // side):
            for column in range(width // side):
                top, left = margin + row * side, margin + column * side
                window = self._draw_pattern(side, x)
                start[:, :, top : top + side, left : left + side] += window
        return start

    def _draw_candidates(self, query: int, x: Tensor, best: Tensor) -> Tensor:
        """Move the norm of one window to another one, for images x: (B, C, H, W)."""
        channels, height, width = x.shape[1:]
        side = window_side_l2(query, (channels, height, width))
        region = self._draw_region(side, height, width)
        emptied = self._draw_region(side, height, width)
        delta, mask = best - x, torch.zeros_like(x)
        mask[region] = mask[emptied] = 1.0
        window = self._draw_pattern(side, x)
        window = window + delta[region] / (1e-12 + _norm(delta[region], (2, 3)))
        unused = (x.new_tensor(self.eps) ** 2 - _norm(delta, (1, 2, 3)) ** 2).clamp(min=0)
        budget = (unused / channels + _norm(delta * mask, (2, 3)) ** 2).sqrt()
        window = window / (1e-12 + _norm(window, (2, 3))) * budget
        delta[emptied] = 0.0
        delta[region] = window
        candidates: Tensor = (x + unit_length(delta) * self.eps).clamp(0, 1)
        return candidates

    def _draw_pattern(self, side: int, x: Tensor) -> Tensor:
        """Draw a window with a sign for each channel of each image: (B, C, side, side)."""
        # It may come transposed, and its norm would round otherwise.
        pattern = self.eta(side).contiguous().view(1, 1, side, side)
        signed: Tensor = pattern * self.random_choice([*x.shape[:2], 1, 1])
        return signed


def unit_length(x: Tensor) -> Tensor:
    """Scale each perturbation, (B, C, H, W), to an L2 norm of 1."""
    # torchattacks 3.5 calls the function of this formula otherwise than 3.3.
    norm = (x**2).flatten(1).sum(dim=1).sqrt()
    return x / (norm.view(-1, 1, 1, 1) + 1e-12)


def _norm(delta: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (delta**2).sum(dim=dims, keepdim=True).sqrt()
