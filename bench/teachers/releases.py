"""Released teachers, listed in releases.toml. Importing this loads no torch."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import datasets
from bench.protocol import suites
from bench.system.errors import UsageError

if TYPE_CHECKING:
    from methods.base import Net

NAME = re.compile("[A-Za-z0-9_-]*[A-Za-z0-9][A-Za-z0-9_-]*")
ROLES = ("robust", "natural")  # teacher roles, which are no names of teachers


@dataclass(frozen=True)
class Release:
    """One released network, under its name at RobustBench, or a user's network.

    clean, autoattack: accuracy in percent, None where none is published; eps: the l-inf radius of
    `autoattack`, pixels in [0, 1]. mean, std: per channel, for a file without; empty if the network
    takes raw pixels. sha256: of the file, empty where none is published. key: which network of the
    file, where several fit.
    """

    name: str
    dataset: str = ""
    arch: str = ""
    where: str = ""
    paper: str = ""
    clean: float | None = None
    autoattack: float | None = None
    sha256: str = ""
    eps: float = 8 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    key: str = ""


def read_releases() -> tuple[Release, ...]:
    """Read the released teachers from the file beside this one."""
    content = tomllib.loads(Path(__file__).with_name("releases.toml").read_text(encoding="utf-8"))
    releases = []
    for row in content["release"]:
        statistics = {name: tuple(row.get(name, ())) for name in ("mean", "std")}
        releases.append(Release(**row | statistics))
    return tuple(releases)


RELEASES = read_releases()


def resolve_release(request: Release) -> Release:
    """Return the release with the name of the request, or else the user's network it describes.

    Raise UsageError for a bad name, an incomplete description or a contradiction to the release.
    """
    name = request.name
    if not NAME.fullmatch(name) or name in ROLES:
        rule = "letters, digits, - and _, neither robust nor natural"
        raise UsageError(f"teacher name {name!r}: {rule}")
    named = [release for release in RELEASES if release.name == name]
    if not named:
        return check_description(request)
    fitting = [release for release in named if request.dataset in ("", release.dataset)]
    if len(fitting) != 1:
        covered = " and ".join(release.dataset for release in named)
        remedy = "say which with --dataset, or choose another name"
        raise UsageError(f"{name} is a release for {covered}: {remedy}")
    release = fitting[0]
    release = replace(release, sha256=release.sha256 or request.sha256, key=request.key)
    for option in ("arch", "mean", "std", "sha256"):
        fact = getattr(release, option)
        if getattr(request, option) not in ("", (), fact):
            remedy = "choose another name for another file"
            raise UsageError(f"--{option}: the release {name} has {fact or 'none'}; {remedy}")
    return release


def check_description(request: Release) -> Release:
    """Add the radius of the first suite with its data. Raise UsageError if facts are missing."""
    if not request.arch or not request.dataset:
        names = {release.name for release in RELEASES}
        nearest = difflib.get_close_matches(request.name, names, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "`teacher list` shows them"
        needs = "and a file of your own needs --arch and --dataset"
        raise UsageError(f"{request.name!r} is no known release ({hint}), {needs}")
    datasets.get(request.dataset).check_statistics(request.mean, request.std)
    return replace(request, eps=suites.default_eps(request.dataset))


def locate_file(source: Path, arch: str, dataset: str) -> tuple[Path, str, str]:
    """Return the path of a file, fetched from a hub if it is there, its network and data set.

    These are in the head of some files, for those not named. Raise BenchError.
    """
    from bench.models import checkpoint, hub

    path, _ = hub.locate(source)
    return path, *checkpoint.stated_network(path, arch, dataset)


def load_file(path: Path, release: Release) -> Net:
    """Load a release's network from a file, in eval mode on the CPU. Raise BenchError."""
    from bench.models import checkpoint

    info, sha256 = datasets.get(release.dataset), release.sha256 or None
    mean, std, key, where = release.mean, release.std, release.key, release.where
    return checkpoint.load(path, release.arch, info, sha256, mean, std, key, where)
