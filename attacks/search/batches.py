"""Official batches: consecutive images that draw from one random stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.search.slots import Job


@dataclass
class Batch:
    """Images of one official batch, and the generators that stand for the global ones.

    host: of the CPU, where torchattacks' APGD and Square draw. device: of the images' device,
    where its PGD does. starts: what was drawn for the images of the current round, by position.
    """

    number: int
    images: list[int]
    host: torch.Generator
    device: torch.Generator
    starts: Tensor = field(default_factory=lambda: torch.empty(0))
    rounds: int = 0
    pending: int = 0


def split_batches(count: int, size: int, seed: int, device: torch.device) -> list[Batch]:
    """Return the batches of `count` images. Each starts from the same seed."""
    batches = []
    for number, start in enumerate(range(0, count, size)):
        images = [*range(start, min(start + size, count))]
        host = torch.Generator().manual_seed(seed)
        batches.append(Batch(number, images, host, torch.Generator(device).manual_seed(seed)))
    return batches


class Rounds:
    """Rounds of a batch: restarts or targets. One begins when the last job of the one before ended.

    draw: draws the starts of a round for the images of a batch that are not fooled. together:
    whether the images of a batch have to begin in the same step.
    """

    def __init__(
        self,
        batches: list[Batch],
        rounds: int,
        draw: Callable[[Batch, int], Tensor],
        together: bool = False,
    ) -> None:
        self.batches, self.rounds, self.draw, self.together = batches, rounds, draw, together
        self.fooled: set[int] = set()
        # The jobs of each round that waits for slots.
        self.ready: deque[list[Job]] = deque()
        for batch in batches:
            self._begin_round(batch)

    def next_jobs(self, room: int) -> list[Job]:
        """Return at most `room` jobs of the next round, or none unless all of them fit."""
        if not self.ready or (self.together and len(self.ready[0]) > room):
            return []
        jobs = self.ready.popleft()
        if jobs[room:]:
            self.ready.appendleft(jobs[room:])
        return jobs[:room]

    def end(self, job: Job, fooled: bool) -> None:
        batch = self.batches[job.batch]
        batch.pending -= 1
        if fooled:
            self.fooled.add(job.image)
        if not batch.pending:
            self._begin_round(batch)

    def _begin_round(self, batch: Batch) -> None:
        batch.images = [image for image in batch.images if image not in self.fooled]
        if batch.rounds == self.rounds or not batch.images:
            batch.starts = torch.empty(0)
            return
        batch.starts = self.draw(batch, len(batch.images))
        batch.pending = len(batch.images)
        jobs = []
        for position, image in enumerate(batch.images):
            jobs.append(Job(image, batch.number, position, batch.rounds))
        self.ready.append(jobs)
        batch.rounds += 1

    def starts(self, jobs: list[Job]) -> Tensor:
        """Return what was drawn for each job."""
        return torch.stack([self.batches[job.batch].starts[job.position] for job in jobs])
