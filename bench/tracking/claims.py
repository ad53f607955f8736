"""Claims: which process is at which run, so that any number of them drain one grid.

A claim is a tag of the experiment, which one process writes and all others read: nothing but the
tracking store is needed. Who goes first is decided by Lamport's bakery (1974), which needs neither
a lock nor a clock: a claim draws a ticket above all that it sees, and the lowest one holds.
A claim lives as long as its number of beats rises, by the clock of whoever watches it. On one
machine the lock of a file says at once that a process has died.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from bench.system.errors import BenchError

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "claim."
BEAT_SECONDS = 10.0  # between two beats of a claim
DEAD_SECONDS = 60.0  # without a beat, by the clock of the process that watches
CHOOSING_SECONDS = 5.0  # to wait for another process that draws its ticket
POLL_SECONDS = 0.1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LostClaimError(BenchError):
    """Another process holds the claim now, since this one was silent for too long."""


@dataclass(frozen=True)
class Claim:
    """What a process says of itself in a tag.

    ticket: 0 while it is drawn. folder_id: of the locks, on its machine. since, heard: when it
    began and of its last beat, in seconds of its own clock, for people. doing: what it is at, and
    code: the commit of its source, for people too. over: claimants that it found dead.
    """

    name: str
    claimant: str
    ticket: int = 0
    beats: int = 0
    host: str = ""
    pid: int = 0
    folder_id: str = ""
    since: float = 0.0
    heard: float = 0.0
    doing: str = ""
    code: str = ""
    over: tuple[str, ...] = ()

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    @property
    def tag(self) -> str:
        """The name of its tag."""
        return f"{PREFIX}{self.name}.{self.claimant}"

    @property
    def text(self) -> str:
        """The value of its tag."""
        values = dataclasses.asdict(self)
        del values["name"], values["claimant"]
        return json.dumps(values)

    @property
    def order(self) -> tuple[int, str]:
        """The lowest one holds."""
        return self.ticket, self.claimant


CLAIM = TypeAdapter(Claim)


def read_claims(tags: dict[str, str]) -> list[Claim]:
    """Return the claims among the tags of an experiment."""
    claims = []
    for tag, text in tags.items():
        if tag.startswith(PREFIX):
            name, _, claimant = tag.removeprefix(PREFIX).rpartition(".")
            # People can change tags; pydantic's error is a ValueError.
            with suppress(ValueError, TypeError):
                values = json.loads(text) | {"name": name, "claimant": claimant}
                claims.append(CLAIM.validate_python(values))
    return claims


def folder_id(folder: Path) -> str:
    """Return a hash of a folder on this machine since it started, the same in all containers.

    "" if there is none.
    """
    if not folder.exists():
        return ""
    status = folder.stat()
    try:
        machine = BOOT_ID.read_text()
    except OSError:  # not Linux
        machine = f"{platform.node()} {uuid.getnode()}"
    text = f"{machine} {status.st_dev} {status.st_ino}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_silent(claim: Claim, now: float) -> bool:
    """Return whether a claim had no beat for long, if its clock is that of this machine."""
    return now - claim.heard > DEAD_SECONDS


def clock() -> float:
    """Return seconds that go on while the machine sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass
class Observation:
    """How long a claim was watched without a new beat."""

    beats: int
    last_look: float
    silent: float = 0.0


class Claims:
    """The claims of one experiment. `folder` holds their locks, which processes of a machine share.

    Errors are those of the tracking store, which have no common class.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, folder: Path) -> None:
        self.client, self.experiment_id, self.folder = client, experiment_id, folder
        self.folder_id = folder_id(folder)
        self.observations: dict[str, Observation] = {}
        self.own: dict[str, str] = {}  # name -> claimant, of the names whose lock this has

    def look(self) -> tuple[list[Claim], list[Claim]]:
        """Return the claims of processes that live, as far as can be told, and of dead ones."""
        claims = self.read()
        passed = {claimant for claim in claims for claimant in claim.over}
        dead = [c for c in claims if c.claimant in passed or self.is_dead(c)]
        return [c for c in claims if c not in dead], dead

    def read(self) -> list[Claim]:
        """Return all claims, and note which have a new beat."""
        now = clock()
        try:
            claims = read_claims(self.client.get_experiment(self.experiment_id).tags)
        except Exception:
            # While the store is away no beat arrives, and no process is dead for that.
            self.observations.clear()
            raise
        before, self.observations = self.observations, {}
        for claim in claims:
            watched = before.get(claim.tag)
            if not watched or watched.beats != claim.beats:
                watched = Observation(claim.beats, now)
            # A pause of this process is no silence of another one.
            watched.silent += min(now - watched.last_look, BEAT_SECONDS)
            watched.last_look = now
            self.observations[claim.tag] = watched
        return claims

    def is_dead(self, claim: Claim) -> bool:
        """Return whether the process of a claim that was read has died."""
        if self.observations[claim.tag].silent >= DEAD_SECONDS:
            return True
        if not self.folder_id or claim.folder_id != self.folder_id:
            return False
        if claim.name in self.own:
            return claim.claimant != self.own[claim.name]
        try:
            with FileLock(self.lock_path(claim.name)).acquire(timeout=0):
                return True
        except Timeout:
            return False

    def lock_path(self, name: str) -> Path:
        """Return the file that a process of this machine locks while it has a claim."""
        return self.folder / f"{name}.lock"

    def take(self, name: str, code: str = "") -> HeldClaim | None:
        """Claim a name; return None, and leave no trace, if another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder_id = folder_id(self.folder)
        lock = FileLock(self.lock_path(name), thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        claimant = self.own[name] = uuid.uuid4().hex[:12]
        claim = Claim(
            name, claimant, host=platform.node(), pid=os.getpid(), folder_id=self.folder_id,
            since=time.time(), heard=time.time(), code=code)  # fmt: skip
        held = HeldClaim(self, claim, lock)
        try:
            if held.wins():
                held.start_beats()
                return held
        except BaseException:
            with suppress(Exception):
                held.release()
            raise
        held.release()
        return None

    def clear_dead(self) -> None:
        """Remove the claims of processes that died."""
        for claim in self.look()[1]:
            if held := self.take(claim.name):
                held.release()

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keep all other processes out of a block of this name, wherever they are."""
        while (held := self.take(name)) is None:
            time.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))
        with held:
            yield


class HeldClaim:
    """A claim of this process. Its beats come from a thread."""

    def __init__(self, claims: Claims, claim: Claim, lock: FileLock) -> None:
        self.claims, self.claim, self.lock = claims, claim, lock
        self.doing = ""
        self.lost_to = ""
        self._is_over, self._beating = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> HeldClaim:
        return self

    def __exit__(self, *_: object) -> None:
        # A store that is away keeps a claim without a beat, which is as good as none.
        with suppress(Exception):
            self.release()

    def wins(self) -> bool:
        """Draw a ticket; return whether no other living claim on the name has a lower one."""
        self._write(self.claim)
        tickets = [rival.ticket for rival in self._rivals(self.claims.read())]
        self._write(replace(self.claim, ticket=1 + max(tickets, default=0)))
        deadline = clock() + CHOOSING_SECONDS
        while True:
            living, dead = map(self._rivals, self.claims.look())
            if all(rival.ticket for rival in living):
                break
            if clock() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        if any(rival.order < self.claim.order for rival in living):
            return False
        if dead:
            self._write(replace(self.claim, over=tuple(rival.claimant for rival in dead)))
        return True

    def start_beats(self) -> None:
        """Let the others see from now on that this process lives."""
        self._thread = threading.Thread(target=self._beat_until_over, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LostClaimError if another process had taken the claim over at the last beat."""
        if self.lost_to:
            raise LostClaimError(
                f"taken over by {self.lost_to}: this process was silent for too long"
            )

    def beat(self) -> None:
        """Say that this process lives, or learn that another one took it for dead."""
        with self._beating:
            experiment = self.claims.client.get_experiment(self.claims.experiment_id)
            for rival in self._rivals(read_claims(experiment.tags)):
                if self.claim.claimant in rival.over:
                    self.lost_to = f"process {rival.pid} on {rival.host}"
                    return
            if self.claim.tag not in experiment.tags:
                self.lost_to = "a process that is over"
                return
            beats, now = self.claim.beats + 1, time.time()
            self._write(replace(self.claim, beats=beats, heard=now, doing=self.doing))

    def release(self) -> None:
        """Remove the claim and those that it took over; stop its beats."""
        self._is_over.set()
        if self._thread:
            self._thread.join()
        try:
            name = self.claim.name
            for claimant in (self.claim.claimant, *self.claim.over):
                self._delete(Claim(name, claimant).tag)
        finally:
            del self.claims.own[self.claim.name]
            self.lock.release()

    def _beat_until_over(self) -> None:
        while not self._is_over.wait(BEAT_SECONDS) and not self.lost_to:
            # The next one may find the store again.
            with suppress(Exception):
                self.beat()

    def _rivals(self, claims: list[Claim]) -> list[Claim]:
        own = self.claim
        return [c for c in claims if c.name == own.name and c.claimant != own.claimant]

    def _write(self, claim: Claim) -> None:
        self.claim = claim
        self.claims.client.set_experiment_tag(self.claims.experiment_id, claim.tag, claim.text)

    def _delete(self, tag: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.claims.client.delete_experiment_tag(self.claims.experiment_id, tag)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
