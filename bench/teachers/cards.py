"""The teachers in a store: checkpoint files, each with a card of hash and origin. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from bench.datasets import Dataset
from bench.system.errors import BenchError, UsageError, unknown_name
from bench.system.files import save_file
from bench.teachers.releases import ROLES, Release
from leaderboards.schema.fields import NORM_LABELS, Norm, file_name
from leaderboards.schema.record import describe_first_error

if TYPE_CHECKING:
    from leaderboards.schema.spec import Spec
    from methods.base import Net

IMPORTED = "imported from"


@dataclass(frozen=True)
class Card:
    """One teacher.

    identity: a name, a dash and eight hex digits, of the spec if trained here, else of the file.
    mean, std: per channel, where the file holds none. key: which network of the file.
    clean, pgd20: accuracy in percent on the first `images` test images, 0 if never measured; PGD-20
    in the ball of radius `eps` in `norm`. checked: the numbers that they were compared with.
    """

    __pydantic_config__: ClassVar = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    identity: str
    arch: str
    dataset: str
    sha256: str
    origin: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    key: str = ""
    images: NonNegativeInt = 0
    norm: Norm = "Linf"
    eps: float = 0.0
    clean: float = 0.0
    pgd20: float = 0.0
    checked: str = ""

    @property
    def name(self) -> str:
        return self.identity.rpartition("-")[0]

    @property
    def imported(self) -> bool:
        return self.origin.startswith(IMPORTED)

    @property
    def measured(self) -> str:
        """Its accuracy, for people."""
        if not self.images:
            return "not measured"
        accuracy = f"clean {self.clean:.1f} %, PGD-20 {self.pgd20:.1f} %"
        return f"{accuracy} ({self.threat}, {self.images:,} test images)"

    @property
    def threat(self) -> str:
        """The norm and radius of PGD-20, for people."""
        return f"{NORM_LABELS[self.norm]} {self.eps:.4g}"


def teacher_identity(spec: Spec) -> str:
    """Return the name of the teacher that a spec trains."""
    return f"{file_name(spec.arch)}-{spec.method}-{spec.id[:8]}"


def trained_card(spec: Spec, sha256: str) -> Card:
    """Return the card of a teacher that was trained by a spec."""
    origin = f"trained here, {spec.suite}, spec {spec.id}"
    return Card(teacher_identity(spec), spec.arch, spec.dataset, sha256, origin)


def teacher_file(store: Path, identity: str, suffix: str = ".pt") -> Path:
    """Return the path of a teacher's checkpoint or card."""
    return store / "teachers" / f"{identity}{suffix}"


def read_cards(store: Path) -> list[Card]:
    """Read all cards of a store, by identity. Raise BenchError for one that cannot be read."""
    adapter = TypeAdapter(Card)
    cards = []
    for path in sorted(store.glob("teachers/*.json")):
        try:
            cards.append(adapter.validate_json(path.read_bytes()))
        except (ValidationError, OSError) as error:
            fault = error.strerror if isinstance(error, OSError) else describe_first_error(error)
            remedy = "mend it, or delete it and make the teacher again"
            raise BenchError(f"{str(path)!r}: {fault}: {remedy}") from error
    return cards


def find_card(store: Path, name: str, dataset: str | None = None) -> Card:
    """Return the card with this identity or name; with a data set, of a teacher for it.

    Raise UsageError without one or for several, which suites of other norms or epochs train, and
    BenchError for other data or an import that was not measured.
    """
    cards = read_cards(store)
    named = [card for card in cards if name in (card.identity, card.name)]
    fitting = [card for card in named if dataset in (None, card.dataset)]
    if len(fitting) > 1:
        identities = ", ".join(card.identity for card in fitting)
        raise UsageError(f"{len(fitting)} teachers are called {name!r}: name one of {identities}")
    if fitting:
        card = fitting[0]
        if dataset and card.imported and not card.images:
            remedy = f"run `python -m bench teacher verify {name}` first"
            raise BenchError(f"teacher {name!r} was never measured: {remedy}")
        return card
    if named:
        raise BenchError(f"teacher {name!r} was trained on {named[0].dataset}, not on {dataset}")
    if name in ROLES:
        hint = "`teacher list` shows the names of the teachers at hand"
        raise UsageError(f"{name!r} is a role in a suite: {hint}")
    raise unknown_name("teacher", name, {*ROLES, *(card.name for card in cards)})


def is_card(store: Path, name: str) -> bool:
    """Return whether a teacher at hand has this identity or name."""
    return any(name in (card.identity, card.name) for card in read_cards(store))


def has_teacher(store: Path, identity: str) -> bool:
    """Return whether file and card of a teacher exist."""
    files = (teacher_file(store, identity, suffix) for suffix in (".pt", ".json"))
    return all(file.exists() for file in files)


def draft_card(store: Path, release: Release, sha256: str, source: str) -> Card:
    """Return the card of a file to import. Raise UsageError for a name in use."""
    digits = sha256
    # The same file with other statistics, or another network in it, is another teacher.
    if release.mean or release.key:
        content = f"{sha256} {release.mean} {release.std} {release.key}".rstrip()
        digits = hashlib.sha256(content.encode()).hexdigest()
    identity = f"{release.name}-{digits[:8]}"
    origin = f"{IMPORTED} {source}, sha256 {'as stated' if release.sha256 else 'unknown before'}"
    card = Card(
        identity, release.arch, release.dataset, sha256, origin,
        mean=release.mean, std=release.std, key=release.key, eps=release.eps)  # fmt: skip
    for other in read_cards(store):
        same_name = (other.name, other.dataset) == (card.name, card.dataset)
        if same_name and (other.identity, other.arch) != (card.identity, card.arch):
            message = f"there is another teacher called {card.name!r} for {card.dataset}"
            raise UsageError(f"{message}: choose another name")
    return card


def add_teacher(store: Path, checkpoint: Path, card: Card) -> None:
    """Copy a checkpoint into the store, then write its card: a card always has its file."""
    save_file(teacher_file(store, card.identity), checkpoint.read_bytes())
    write_card(store, card)


def write_card(store: Path, card: Card) -> None:
    """Write the card of a teacher whose file is there. Raise BenchError if that fails."""
    content = json.dumps(dataclasses.asdict(card), indent=2) + "\n"
    save_file(teacher_file(store, card.identity, ".json"), content.encode())


def load_teacher(store: Path, card: Card, info: Dataset) -> Net:
    """Load the network in eval mode on the CPU. Raise BenchError for a file with another hash."""
    from bench.models import checkpoint

    path = teacher_file(store, card.identity)
    # With an empty hash the file would not be checked.
    sha256 = card.sha256 or "none"
    try:
        return checkpoint.load(path, card.arch, info, sha256, card.mean, card.std, card.key)
    except BenchError as error:
        raise BenchError(f"{error}; delete it to have the teacher made again") from error
