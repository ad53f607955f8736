"""Official batches: consecutive images that draw from one random stream."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attacks.build import Settings
from attacks.catalog import Attack
from attacks.search.passes import Passes
from attacks.search.slots import Job, Search


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


class BatchedSearch(Search):
    """A search whose images draw in official batches, in rounds: restarts or targets.

    A round of a batch begins when the last job of the one before ended. together: whether the
    images of a batch have to begin in the same step.
    """

    together = False

    def __init__(self, attack: Attack, passes: Passes, settings: Settings, x: Tensor) -> None:
        super().__init__(attack, passes, settings, x)
        self.batches = split_batches(len(x), settings.batch_size, settings.seed, x.device)
        self.fooled: set[int] = set()
        # The jobs of each round that waits for slots.
        self.ready: deque[list[Job]] = deque()

    @abstractmethod
    def draw(self, batch: Batch, count: int) -> Tensor:
        """Draw the starts of a round, as torchattacks does, for `count` robust images: (n, ...)."""

    def begin_rounds(self) -> None:
        """Begin the first round of each batch."""
        for batch in self.batches:
            self._begin_round(batch)

    def next_jobs(self, room: int) -> list[Job]:
        """Return at most `room` jobs of a round, or none unless all of them fit."""
        fitting = (jobs for jobs in self.ready if not self.together or len(jobs) <= room)
        jobs = next(fitting, None)
        if jobs is None:
            return []
        self.ready.remove(jobs)
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
        if batch.rounds == self.rounds_per_image or not batch.images:
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
