"""The teachers at hand: checkpoint files in <store>/teachers, each with a card that states its hash and where it is from."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from bench import datasets
from bench.datasets import Dataset
from bench.system.errors import BenchError, UsageError, unknown
from bench.teachers.zoo import Release
from leaderboards.schema import record

if TYPE_CHECKING:
    from torch import Tensor

    from bench.datasets.data import Split
    from methods.base import Net

IMPORTED = "imported from"
FEWEST = 100  # test images that say something about an imported teacher
ERRORS = 4  # standard errors: a sound file is refused once in ten thousand times
ROUNDING = 0.5  # points of accuracy that another machine or library may move


@dataclass(frozen=True)
class Card:
    """One teacher. `identity` is a name, a dash and eight hex digits: of the spec if trained here, else of the file.

    mean, std: per channel, where the file holds none. clean, pgd20: accuracy in percent on the first `images` test
    images, PGD-20 in the l-inf ball of radius `eps`; images = 0: never measured. checked: what they were held against.
    """

    __pydantic_config__: ClassVar = {"strict": True, "extra": "forbid", "allow_inf_nan": False}

    identity: str
    arch: str
    dataset: str
    sha256: str
    origin: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    images: NonNegativeInt = 0
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
        """What is known of its accuracy, for people."""
        if not self.images:
            return "not measured"
        return f"clean {self.clean:.1f} %, PGD-20 {self.pgd20:.1f} % (l-inf {self.eps:.4g}, {self.images:,} test images)"


def cards(store: Path) -> list[Card]:
    """All teachers of a store, by identity. Raises BenchError for a card that cannot be read."""
    made, found = TypeAdapter(Card), []
    for path in sorted(store.glob("teachers/*.json")):
        try:
            found.append(made.validate_json(path.read_bytes()))
        except (ValidationError, OSError) as error:
            wrong = record.describe_first_error(error) if isinstance(error, ValidationError) else error.strerror
            raise BenchError(
                f"{str(path)!r}: {wrong}: mend it, or delete it and make the teacher again"
            ) from error
    return found


def find(store: Path, name: str, dataset: str | None = None) -> Card:
    """The teacher with this identity or name; with a data set, one that may teach on it.

    Raises UsageError if there is none, BenchError if it was trained on other data or imported without being measured.
    """
    known = cards(store)
    named = [card for card in known if name in (card.identity, card.name)]
    fitting = [card for card in named if dataset in (None, card.dataset)]
    if fitting:
        card = fitting[-1]
        if dataset and card.imported and not card.images:
            raise BenchError(
                f"teacher {name!r} was never measured: run `python -m bench teacher verify {name}` first"
            )
        return card
    if named:
        raise BenchError(f"teacher {name!r} was trained on {named[0].dataset}, not on {dataset}")
    if name in ("robust", "natural"):
        raise UsageError(
            f"{name!r} is a role in a suite: `teacher list` shows the names of the teachers at hand"
        )
    raise unknown("teacher", name, {"robust", "natural", *(card.name for card in known)})


def exists(store: Path, identity: str) -> bool:
    """Whether file and card are there."""
    return all((store / "teachers" / f"{identity}{suffix}").exists() for suffix in (".pt", ".json"))


def draft(store: Path, release: Release, sha256: str, source: str) -> Card:
    """The card of a file that is about to be imported. Raises UsageError if its name is taken.

    Its eight digits are those of the file's hash, or of the hash and the statistics if the file holds none.
    """
    whole = f"{sha256} {release.mean} {release.std}".encode()
    digits = hashlib.sha256(whole).hexdigest() if release.mean else sha256
    identity = f"{release.name}-{digits[:8]}"
    origin = f"{IMPORTED} {source}, sha256 {'as stated' if release.sha256 else 'unknown before'}"
    card = Card(identity, release.arch, release.dataset, sha256, origin, release.mean, release.std)
    for other in cards(store):
        taken = (other.name, other.dataset) == (card.name, card.dataset)
        if taken and (other.identity, other.arch) != (card.identity, card.arch):
            raise UsageError(
                f"there is another teacher called {card.name!r} for {card.dataset}: choose another name"
            )
    return card


def keep(store: Path, checkpoint: Path, card: Card) -> None:
    """Copies a checkpoint among the teachers; the card is written last, so a card always has its file."""
    folder = store / "teachers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint, folder / f"{card.identity}.part")
        (folder / f"{card.identity}.part").replace(folder / f"{card.identity}.pt")
    except OSError as error:
        raise BenchError(f"cannot write to {str(folder)!r}: {error.strerror}") from error
    note(store, card)


def note(store: Path, card: Card) -> None:
    """Writes the card of a teacher whose file is there."""
    path = store / "teachers" / f"{card.identity}.json"
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")
        part.replace(path)
    except OSError as error:
        raise BenchError(f"cannot write to {str(path.parent)!r}: {error.strerror}") from error


def load(store: Path, card: Card, info: Dataset) -> Net:
    """The network, in eval mode on the CPU. Raises BenchError unless the file has the hash on its card."""
    from bench.models import checkpoint

    path = store / "teachers" / f"{card.identity}.pt"
    try:
        stated = card.sha256 or "none"  # with "" the file would not be checked
        return checkpoint.load(path, card.arch, info, stated, card.mean, card.std)
    except BenchError as error:
        raise BenchError(f"{error}; delete it to have the teacher made again") from error


def check_images(count: int, fewest: int) -> None:
    """Raises UsageError for a measurement on too few test images."""
    if count < fewest:
        raise UsageError(f"--limit-test {count}: at least {fewest}")


def margin(percent: float, images: int, total: float = math.inf) -> float:
    """How far, in points, an accuracy on `images` out of `total` images may lie from `percent`, that of all.

    Four standard errors of a sample without replacement, and half a point for rounding.
    """
    share = percent / 100
    return ERRORS * 100 * math.sqrt(share * (1 - share) / images * (1 - images / total)) + ROUNDING


def check_clean(net: Net, test: Split, total: int, release: Release) -> None:
    """Raises BenchError unless `net` classifies `test`, of `total` test images, as it must.

    Its accuracy must be the published one. Where none is published it must be better than by chance, and not worse than
    with the pixels normalised in another way, not at all or by the statistics of the data set.
    """
    check_images(len(test), FEWEST)
    hits = correct(net, test)
    clean, images, info = percent(hits), len(hits), datasets.get(release.dataset)
    found = f"{clean:.1f} % of {images:,} test images are classified correctly"
    if release.clean is not None:
        room = margin(release.clean, images, total)
        if abs(clean - release.clean) > room:
            known = f"the {release.clean} % of {release.name}, give or take {room:.1f}"
            raise BenchError(f"{found}, not {known}: this is another network")
        return
    chance = 100 / info.num_classes
    if clean <= chance + margin(chance, images):
        raise BenchError(
            f"{found}, no more than by chance: wrong normalisation, other labels or an untrained network"
        )
    none = (0.0,) * len(info.mean), (1.0,) * len(info.mean)
    for way, statistics in {
        "not at all": none,
        f"by the mean and std of {info.name}": (info.mean, info.std),
    }.items():
        other = correct(renormalised(net, *statistics), test)
        gained, lost = int((other & ~hits).sum()), int((hits & ~other).sum())
        if gained - lost > ERRORS * math.sqrt(gained + lost):
            better = f"{percent(other):.1f} % if the pixels are normalised {way}"
            raise BenchError(
                f"{found}, but {better}: wrong normalisation (--mean and --std, for a file that holds none)"
            )


def checked(card: Card, total: int, release: Release) -> Card:
    """The measured card with what its numbers were held against.

    Raises BenchError if PGD-20 broke more than the stronger AutoAttack is known to break at a radius no smaller.
    """
    known = release.autoattack
    if known is None:
        return dataclasses.replace(
            card, checked="better than chance and than other normalisations; none is published"
        )
    if card.eps <= release.eps and card.pgd20 < known - margin(known, card.images, total):
        found = f"{card.pgd20:.1f} % of {card.images:,} test images withstand PGD-20"
        raise BenchError(
            f"{found}, AutoAttack leaves {release.name} {known} %: this is another network"
        )
    return dataclasses.replace(
        card, checked=f"published: clean {release.clean} %, AutoAttack {known} %"
    )


def renormalised(net: Net, mean: tuple[float, ...], std: tuple[float, ...]) -> Net:
    """A copy of `net` with another mean and std per channel."""
    other = copy.deepcopy(net)
    other.mean.copy_(other.mean.new_tensor(mean).view_as(other.mean))
    other.std.copy_(other.std.new_tensor(std).view_as(other.std))
    return other


def correct(net: Net, test: Split) -> Tensor:
    """Which test images `net` classifies correctly: (N,) bool, on the CPU."""
    import torch

    from bench.datasets.data import to_float

    batches = zip(torch.split(test.x, 250), torch.split(test.y, 250), strict=True)
    with torch.no_grad():
        return torch.cat(
            [net(to_float(x.to(net.mean.device))).argmax(dim=1).cpu() == y for x, y in batches]
        )


def percent(hits: Tensor) -> float:
    """The share of True, in percent."""
    return 100 * hits.float().mean().item()
