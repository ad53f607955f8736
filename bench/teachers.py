"""The teachers at hand: checkpoint files in <store>/teachers, each with a card that states its hash and where it is from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.datasets import Dataset
from bench.errors import BenchError, UsageError, unknown

if TYPE_CHECKING:
    from methods.base import Net


@dataclass(frozen=True)
class Card:
    """One teacher. `identity` is a name, a dash and eight hex digits: of the spec if trained here, else of the file."""

    identity: str
    arch: str
    dataset: str
    sha256: str
    origin: str

    @property
    def name(self) -> str:
        return self.identity.rpartition("-")[0]


def cards(store: Path) -> list[Card]:
    """All teachers of a store, by identity. Raises BenchError for a card that cannot be read."""
    found = []
    for path in sorted(store.glob("teachers/*.json")):
        try:
            found.append(Card(**json.loads(path.read_text())))
        except (ValueError, TypeError, OSError) as error:
            raise BenchError(f"{str(path)!r} is not a teacher's card: delete it and make the teacher again") from error
    return found


def find(store: Path, name: str, dataset: str | None = None) -> Card:
    """The teacher with this identity or name, for a data set if given. Raises UsageError if there is none."""
    known = cards(store)
    named = [card for card in known if name in (card.identity, card.name)]
    fitting = [card for card in named if dataset in (None, card.dataset)]
    if fitting:
        return fitting[-1]
    if named:
        raise BenchError(f"teacher {name!r} was trained on {named[0].dataset}, not on {dataset}")
    if name in ("robust", "natural"):
        raise UsageError(f"{name!r} is a role in a suite: `teacher list` shows the names of the teachers at hand")
    raise unknown("teacher", name, {"robust", "natural", *(card.name for card in known)})


def exists(store: Path, identity: str) -> bool:
    """Whether file and card are there."""
    return all((store / "teachers" / f"{identity}{suffix}").exists() for suffix in (".pt", ".json"))


def keep(store: Path, checkpoint: Path, card: Card) -> None:
    """Copies a checkpoint among the teachers; the card is written last, so a card always has its file."""
    folder = store / "teachers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint, folder / f"{card.identity}.part")
        (folder / f"{card.identity}.part").replace(folder / f"{card.identity}.pt")
        (folder / f"{card.identity}.json.part").write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")
        (folder / f"{card.identity}.json.part").replace(folder / f"{card.identity}.json")
    except OSError as error:
        raise BenchError(f"cannot write to {str(folder)!r}: {error.strerror}") from error


def load(store: Path, card: Card, info: Dataset) -> Net:
    """The network, in eval mode on the CPU. Raises BenchError unless the file has the hash on its card."""
    from bench.models import checkpoint

    try:
        return checkpoint.load(store / "teachers" / f"{card.identity}.pt", card.arch, info, card.sha256)
    except BenchError as error:
        raise BenchError(f"{error}; delete it to have the teacher made again") from error
