"""Draining a grid: which run is next, until none is left, beside any number of other processes.

Others may drain the same grid, on this machine or elsewhere: what they are at is left to them, what
they finished is not done again, and what they died at is taken up.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from itertools import islice
from typing import Protocol, TypeAlias

from bench.execution.grid.work import QueuedRun, RunOutcome
from bench.execution.job import RunContext, is_marked
from bench.system.errors import BenchError
from bench.system.log import LOGGER
from bench.tracking.listing import ListedRun
from bench.tracking.outage import patiently
from leaderboards.schema.fields import FAILED, FINISHED, Tag
from leaderboards.schema.spec import Spec

# The last lines of runs that failed, by identity.
Failures: TypeAlias = dict[str, str]

POLL_SECONDS = 1.0  # between looks at what others are at
BUSY_SECONDS = 3.0  # until a run that another process had is tried again
# Of the time that may go into listing what others have ended: beside runs, and with nothing to do.
LISTING_SHARE, IDLE_SHARE = 0.05, 0.3
MOST_DEATHS = 2  # of processes that had a run


class Executor(Protocol):
    """Where runs are carried out."""

    def has_room(self) -> bool:
        """Return whether another run can be started."""

    def start(self, item: QueuedRun) -> None:
        """Start a run."""

    def wait(self, seconds: float) -> list[tuple[QueuedRun, RunOutcome]]:
        """Return the runs that ended since, after at most so long."""


class Report(Protocol):
    """Says how runs ended."""

    def finish(self, number: int, label: str, result: str, succeeded: bool) -> None:
        """Log the result of a run."""


class Drain:
    """What is left of a grid of one suite, for one command."""

    def __init__(self, items: list[QueuedRun], context: RunContext, report: Report) -> None:
        self.context, self.report = context, report
        self.suite = items[0].run.spec.suite
        self.left = {item.number: item for item in items}
        self.ids = {item.number: item.run.spec.id for item in items}
        # What runs that are left will provide: a record, and a teacher.
        self.pending = {*self.ids.values(), *(item.run.identity for item in items)}
        self.needs = {item.number: prerequisites(item.run.spec) for item in items}
        self.running: set[int] = set()
        self.failed: Failures = {}
        self.retry_time: dict[int, float] = {}
        self.deaths: dict[int, int] = {}
        # Spec ids that other processes have, and those that they had before the last listing.
        self.busy_ids: set[str] = set()
        self.unlisted_ids: set[str] = set()
        self.next_look = 0.0
        self.listing_seconds, self.last_listing = 0.0, time.monotonic()
        self.earlier_failures = self._ended_runs(FAILED).keys()

    def run(self, executor: Executor) -> Failures:
        """Carry out what is left; return what failed. Raise BenchError for what stops all runs."""
        while self.left:
            while executor.has_room() and (item := self._next_item()):
                self.running.add(item.number)
                executor.start(item)
            share = LISTING_SHARE if self.running else IDLE_SHARE
            if self.running:
                self._settle_all(executor.wait(POLL_SECONDS))
            elif self.left:
                time.sleep(POLL_SECONDS)
            self._look_elsewhere(share)
        return self.failed

    def _settle_all(self, ended: list[tuple[QueuedRun, RunOutcome]]) -> None:
        for item, outcome in ended:
            self.running.discard(item.number)
            self._settle(item, outcome)

    def _settle(self, item: QueuedRun, outcome: RunOutcome) -> None:
        number, label = item.number, item.run.label
        if outcome.end == "stop":
            raise BenchError(outcome.message)
        if outcome.end == "busy":
            self.retry_time[number] = time.monotonic() + BUSY_SECONDS * random.uniform(0.5, 1.5)
            return
        if outcome.end == "died":
            self.deaths[number] = self.deaths.get(number, 0) + 1
            if self.deaths[number] < MOST_DEATHS:
                LOGGER.warning(f"warning: {label}: its process died; it is tried once more")
                return
            outcome = RunOutcome("failed", f"failed: its process died {MOST_DEATHS} times")
        self._end(item, outcome.message, outcome.end == "recorded")

    def _end(self, item: QueuedRun, message: str, succeeded: bool) -> None:
        del self.left[item.number]
        self.pending -= {self.ids[item.number], item.run.identity}
        self.report.finish(item.number, item.run.label, message, succeeded)
        if succeeded:
            return
        self.failed[item.run.identity] = message
        for other in list(self.left.values()):
            if item.run.identity in other.run.spec.teachers.values():
                message = f"not run, its teacher {item.run.identity} failed"
                self._end(other, message, succeeded=False)

    def _next_item(self) -> QueuedRun | None:
        """Return a run that can begin now.

        It is the first, but for as many as there are other processes: they take the others.
        """
        now = time.monotonic()
        waiting = {number for number, moment in self.retry_time.items() if moment > now}
        idle = self.left.keys() - self.running - waiting
        if not idle:
            return None
        if now >= self.next_look:
            self._look_at_claims()
        can_begin = (number for number in sorted(idle) if self._can_begin(number))
        choices = list(islice(can_begin, len(self.busy_ids) + 1))
        return self.left[random.choice(choices)] if choices else None

    def _can_begin(self, number: int) -> bool:
        elsewhere = self.busy_ids | self.unlisted_ids
        return self.ids[number] not in elsewhere and self.needs[number].isdisjoint(self.pending)

    def _look_at_claims(self) -> None:
        own = {self.ids[number] for number in self.running}
        living, _ = patiently(self.context.store.claims(self.suite).look)
        busy_ids = {claim.name for claim in living} - own
        self.unlisted_ids |= self.busy_ids - busy_ids
        self.busy_ids = busy_ids
        self.next_look = time.monotonic() + POLL_SECONDS

    def _look_elsewhere(self, share: float) -> None:
        """End the runs that other processes have recorded, or that failed there.

        At most a share of the time goes into it.
        """
        start = time.monotonic()
        wait = max(BUSY_SECONDS, self.listing_seconds / share)
        if start < self.last_listing + wait or not self.left:
            return
        if self.busy_ids or self.unlisted_ids or self.retry_time:
            self.unlisted_ids.clear()
            finished, failed = self._ended_runs(FINISHED), self._ended_runs(FAILED)
            for number in list(self.left.keys() - self.running):
                # A teacher that failed has ended its students.
                if item := self.left.get(number):
                    self._end_if_elsewhere(item, finished, failed)
        self.last_listing = time.monotonic()
        self.listing_seconds = self.last_listing - start

    def _end_if_elsewhere(
        self, item: QueuedRun, finished: dict[str, ListedRun], failed: dict[str, ListedRun]
    ) -> None:
        spec_id = self.ids[item.number]
        recorded = finished.get(spec_id)
        if recorded and not is_marked(item.run, self.context, recorded.run_id):
            self._end(item, "recorded by another process", succeeded=True)
        elif spec_id in failed.keys() - self.earlier_failures - self.busy_ids:
            note = failed[spec_id].tags.get(Tag.STATUS_NOTE, "")
            self._end(item, f"failed in another process: {note}", succeeded=False)

    def _ended_runs(self, status: str) -> dict[str, ListedRun]:
        """Return the suite's runs with a status by spec id, of several the newest."""
        runs = patiently(lambda: self.context.store.runs_with_status(self.suite, status))
        return {run.tags[Tag.SPEC_ID]: run for run in runs}


def prerequisites(spec: Spec) -> set[str]:
    """Return what comes before a run: its teachers, by identity, and what it may be a copy of.

    A tuned run may be a copy of the one with the same values, by its spec id.
    """
    untuned = {replace(spec, tuned=0).id} if spec.tuned else set()
    return {*spec.teachers.values(), *untuned}
