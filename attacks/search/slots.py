"""Slots of a pass, filled with single images as others leave."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.build import Settings
from attacks.catalog import Attack
from attacks.search.passes import Passes, State

# Smaller passes are not faster on a device.
MIN_SIZE = 32
# Slots of several passes are filled up to a multiple of this part of one.
PART = 8


@dataclass(frozen=True)
class Job:
    """A run on one image: its row, and what the search remembers beside it."""

    image: int
    batch: int = 0
    position: int = 0
    target: int = 0


class Search(ABC):
    """An attack, step by step, on independent images x: (N, C, H, W).

    steps: of a run, at most. rounds_per_image: runs on an image that stays robust.
    steps_between_looks: steps after which the host asks who is fooled. keeps_last: whether the
    last iterate counts, as PGD's does, and not the first one that fools. passes_per_step: an input
    gradient costs as much as another pass.
    """

    rounds_per_image = 1
    passes_per_step = 2
    steps_between_looks = 5
    keeps_last = False

    def __init__(self, attack: Attack, passes: Passes, settings: Settings, x: Tensor) -> None:
        self.passes, self.x, self.steps = passes, x, attack.steps
        self.eps, self.norm = settings.eps, settings.norm

    def capacity(self) -> int:
        """Return how many slots a step has at most: one pass, or several where it says so."""
        return self.passes.size

    @abstractmethod
    def next_jobs(self, room: int) -> list[Job]:
        """Return at most `room` jobs that can begin now; others may wait for jobs to end."""

    @abstractmethod
    def begin(self, jobs: list[Job], x: Tensor) -> State:
        """Return the state of new jobs, on images x: (n, C, H, W)."""

    @abstractmethod
    def step(self, state: State) -> State:
        """Return what a step changes. Nothing in it may wait for the device."""

    def end(self, job: Job, fooled: bool) -> None:  # noqa: B027
        """Take note of the end of a job."""

    def to_tensor(self, numbers: Iterable[int]) -> Tensor:
        """Return integers on the images' device."""
        return torch.tensor([*numbers], dtype=torch.long, device=self.x.device)

    def likeliest(self, count: int) -> Tensor:
        """Return the `count` likeliest classes of each image behind the first: (N, count)."""
        return self.passes.all_logits(self.x).argsort(dim=1).flip(1)[:, 1 : count + 1]

    def pick(self, targets: Tensor, jobs: list[Job]) -> Tensor:
        """Return the target of each job from those of all images, (N, T): (n,)."""
        rows = self.to_tensor(job.image for job in jobs)
        return targets[rows, self.to_tensor(job.target for job in jobs)]


class Slots:
    """The jobs of a search, in slots.

    adv: (N, C, H, W), the images, fooled ones replaced. unclear: images whose logits were not
    finite, which this search says nothing about.
    """

    def __init__(self, search: Search, passes: Passes, x: Tensor, y: Tensor) -> None:
        self.search, self.passes, self.y = search, passes, y
        self.adv, self.x = x.clone(), x
        self.state: State = {}
        self.jobs: list[Job | None] = []
        # Steps of the jobs in slots, and jobs that did not fool: for the progress.
        self.taken: dict[Job, int] = {}
        self.survived = 0
        self.fooled: set[int] = set()
        self.unclear: set[int] = set()

    def run(self, progress: Callable[[int], None]) -> None:
        """Run all jobs; `progress` is called with the number of images that are done."""
        while True:
            if not self._fill():
                return
            self._steps()
            progress(self._done())

    def _done(self) -> int:
        """Return how many images are done, with parts of those whose runs are under way."""
        under_way = sum(min(steps / self.search.steps, 1) for steps in self.taken.values())
        of_robust = (self.survived + under_way) / self.search.rounds_per_image
        return min(len(self.fooled) + int(of_robust), len(self.x))

    def _fill(self) -> bool:
        """Put waiting jobs into free slots; return whether any slot holds one."""
        waiting: list[Job] = []
        live = [job for job in self.jobs if job]
        while room := self.search.capacity() - len(live) - len(waiting):
            jobs = self.search.next_jobs(room)
            if not jobs:
                break
            waiting += [job for job in jobs if job.image not in self.fooled]
        self._resize(len(live) + len(waiting))
        free = [slot for slot, job in enumerate(self.jobs) if job is None][: len(waiting)]
        if waiting:
            self._put(free, waiting)
        self.state = self.passes.adopt(self.state)
        return bool(live or waiting)

    def _put(self, slots: list[int], jobs: list[Job]) -> None:
        rows = self.search.to_tensor(job.image for job in jobs)
        x, where = self.x[rows], self.search.to_tensor(slots)
        new = {
            "x": x, "y": self.y[rows], "candidate": x,
            "margin": torch.full((len(jobs),), -torch.inf, device=self.x.device),
            "done": torch.zeros(len(jobs), dtype=torch.bool, device=self.x.device),
            "finite": torch.ones(len(jobs), dtype=torch.bool, device=self.x.device),
        }  # fmt: skip
        new |= self.search.begin(jobs, x)
        if not self.state:
            # Slots without a job pass copies of the first image, and are done.
            for name, values in new.items():
                self.state[name] = values[:1].repeat(len(self.jobs), *[1] * (values.ndim - 1))
            self.state["done"].fill_(True)
        for name, values in new.items():
            self.state[name].index_copy_(0, where, values)
        for slot, job in zip(slots, jobs, strict=True):
            self.jobs[slot] = job

    def _resize(self, count: int) -> None:
        """Have slots for `count` jobs: of the few sizes the smallest that holds them."""
        size = self.passes.size
        while size // 2 >= max(count, MIN_SIZE):
            size //= 2
        if count > size:
            part = max(size // PART, 1)
            size = math.ceil(count / part) * part
        if size == len(self.jobs):
            return
        rows = [slot for slot, job in enumerate(self.jobs) if job]
        self.jobs = [self.jobs[row] for row in rows] + [None] * (size - len(rows))
        if not rows:
            self.state = {}
            return
        index = self.search.to_tensor(rows + [rows[0]] * (size - len(rows)))
        self.state = {name: values[index] for name, values in self.state.items()}
        self.state["done"][len(rows) :] = True

    def _steps(self) -> None:
        for _ in range(self.search.steps_between_looks):
            self.passes.run_step(self.search.step, self.state)
        for job in filter(None, self.jobs):
            self.taken[job] = self.taken.get(job, 0) + self.search.steps_between_looks
        self._look()

    def _look(self) -> None:
        """Ask the device who is fooled or done, and free these slots."""
        wrong, done, finite = self._flags()
        for slot in self._confirm(wrong):
            self._end(slot, fooled=True)
        for slot, job in enumerate(self.jobs):
            if job and job.image in self.fooled:
                # Another job of the image did.
                self._end(slot, fooled=True)
            elif job and slot in done:
                if self.search.keeps_last:
                    self.adv[job.image] = self.state["candidate"][slot]
                if slot not in finite:
                    self.unclear.add(job.image)
                self._end(slot, fooled=False)
        free = [slot for slot, job in enumerate(self.jobs) if job is None]
        self.state["done"].index_fill_(0, self.search.to_tensor(free), True)

    def _flags(self) -> tuple[list[int], set[int], set[int]]:
        """Return the slots that are fooled, done and finite: the one wait of several steps."""
        state, ends_early = self.state, not self.search.keeps_last
        wrong = (state["margin"] > -torch.inf) & ends_early
        flags = torch.stack([wrong, state["done"], state["finite"]]).tolist()
        slots = [[slot for slot, flag in enumerate(row) if flag] for row in flags]
        return [slot for slot in slots[0] if self.jobs[slot]], set(slots[1]), set(slots[2])

    def _confirm(self, slots: list[int]) -> list[int]:
        """Return the slots that fool the reference model too; the others go on."""
        if not slots:
            return []
        index = self.search.to_tensor(slots)
        candidates = self.state["candidate"][index]
        fooled = self.passes.confirm(candidates, self.state["y"][index])
        self.state["margin"].index_fill_(0, index, -torch.inf)
        self.passes.refused += fooled.count(False)
        confirmed = [position for position, flag in enumerate(fooled) if flag]
        for position in confirmed:
            job = self.jobs[slots[position]]
            assert job
            self.fooled.add(job.image)
            self.adv[job.image] = candidates[position]
        return [slots[position] for position in confirmed]

    def _end(self, slot: int, fooled: bool) -> None:
        job = self.jobs[slot]
        assert job
        self.jobs[slot] = None
        self.taken.pop(job, None)
        self.survived += not fooled
        self.search.end(job, fooled)
