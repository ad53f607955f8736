"""Train, import, list or verify a teacher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from bench.cli.parsing import Command, option
from bench.protocol.options import CommonOptions, ProtocolOptions, StoreFolder

if TYPE_CHECKING:
    from bench.teachers import Card
    from bench.teachers.zoo import Release
    from methods.base import Net


@dataclass(frozen=True, kw_only=True)
class TrainTeacherOptions(ProtocolOptions):
    """Train a suite's teacher now, as `run` does on first use."""

    role: Annotated[Literal["robust", "natural"], option(text="of the suite's two")] = "robust"


@dataclass(frozen=True, kw_only=True)
class ImportTeacherOptions(CommonOptions):
    """Take a checkpoint file as a teacher, after its hash, keys and test accuracy are checked.

    A release of `teacher list` brings model, data set, normalisation and expected accuracy; any
    other name needs --arch and --dataset.
    """

    name: Positional[Annotated[str, option("NAME", "a release, or the name for `--teacher`")]]
    file: Positional[Annotated[Path, option("FILE", "the checkpoint")]]
    arch: Annotated[str, option("MODEL", "such as wrn34-10; see `list`")] = ""
    dataset: Annotated[str, option("NAME", "what it was trained on")] = ""
    sha256: Annotated[str, option("HEX", "refuse the file unless this is its hash")] = ""
    mean: Annotated[tuple[float, ...], option(text="per channel, if the file has none")] = ()
    std: Annotated[tuple[float, ...], option(text="as --mean")] = ()
    limit_test: Annotated[int, option("N", "use the first N test images, 100 or more")] = 1000


@dataclass(frozen=True, kw_only=True)
class ListTeachersOptions:
    """List the teachers at hand, and the releases that can be had."""

    store: StoreFolder = Path("runs")


@dataclass(frozen=True, kw_only=True)
class VerifyTeacherOptions(CommonOptions):
    """Check a teacher's file, measure clean accuracy and PGD-20, and write them on its card."""

    name: Positional[Annotated[str, option("NAME", "as `teacher list` shows it")]]
    suite: Annotated[str, option("NAME", "whose eps to use", "the first with its data set")] = ""
    limit_test: Annotated[int, option("N", "use the first N test images")] = 1000


MeasureOptions = ImportTeacherOptions | VerifyTeacherOptions


def train_teacher(options: TrainTeacherOptions) -> int:
    """Train a teacher for each data set; return the exit code."""
    from bench.execution import grid, plan

    suite = plan.resolve(options)
    names = plan.requested_datasets(options, suite)
    runs = [plan.plan_teacher(options, suite, name, options.role) for name in names]
    return grid.run_grid(options, runs)


def import_teacher(options: ImportTeacherOptions) -> int:
    """Copy a checkpoint to the teachers after hash, keys and accuracy are checked."""
    from bench import datasets, models, teachers
    from bench.models import checkpoint
    from bench.teachers import zoo

    teachers.check_images(options.limit_test, teachers.FEWEST)
    sha256, file = options.sha256.lower(), options.file
    release = zoo.resolve(
        options.name, options.arch, options.dataset, sha256, options.mean, options.std
    )
    info = datasets.get(release.dataset)
    models.check(release.arch)
    sha256 = release.sha256
    net = checkpoint.load(file, release.arch, info, sha256 or None, release.mean, release.std)
    if not sha256:
        checkpoint.check_intact(file)
    card = teachers.draft(options.store, release, checkpoint.sha256_of(file), file.name)
    card = measure_teacher(net, card, release, release.eps, options)
    teachers.keep(options.store, file, card)
    if not sha256:
        print(f"no sha256 was stated: the card holds the file's own, {card.sha256}")
    print(f"{card.identity} is ready: `run --teacher {options.name}`")
    return 0


def list_teachers(options: ListTeachersOptions) -> int:
    """Print a line for each teacher at hand, then for each release."""
    from bench import teachers
    from bench.teachers import zoo

    for card in teachers.cards(options.store):
        network = f"{card.arch:16} {card.dataset:10} {card.sha256[:16]}"
        print(f"{card.identity:40} {network} {card.origin}; {card.measured}")
    print("\nreleases, for `teacher import NAME FILE` when the file is downloaded", end=" ")
    print("(clean and AutoAttack in percent):")
    for release in zoo.RELEASES:
        network = f"{release.arch:20} {release.dataset:9}"
        accuracy = f"{release.clean:5.2f} {release.autoattack:5.2f}"
        print(f"{release.name:40} {network} {accuracy}  {release.paper:32} {release.where}")
    return 0


def verify_teacher(options: VerifyTeacherOptions) -> int:
    """Check hash and keys, measure clean accuracy and PGD-20, and write them on the card."""
    from bench import datasets, teachers
    from bench.cli.evaluation import first_suite
    from bench.protocol import suites
    from bench.teachers import zoo

    teachers.check_images(options.limit_test, 1)
    card = teachers.find(options.store, options.name)
    info = datasets.get(card.dataset)
    eps, release = first_suite(info).eps, None
    if card.imported:
        release = zoo.resolve(card.name, card.arch, info.name, "", card.mean, card.std)
        eps = release.eps
    if options.suite:
        eps = suites.get(options.suite).eps
    net = teachers.load(options.store, card, info)
    print(f"{card.identity}: file has sha256 {card.sha256}, a {card.arch} for {card.dataset}")
    teachers.note(options.store, measure_teacher(net, card, release, eps, options))
    return 0


def measure_teacher(
    net: Net, card: Card, release: Release | None, eps: float, options: MeasureOptions
) -> Card:
    """Return the card with clean accuracy and PGD-20 in percent, checked against the release."""
    from bench import teachers
    from bench.cli.evaluation import attack_test_images, print_accuracies
    from bench.datasets import data
    from bench.system import environment

    device = environment.resolve_device(options.device)
    split = data.load(card.dataset, options.data_root).test
    net = net.to(device)
    test = data.Split(split.x[: options.limit_test], split.y[: options.limit_test])
    if release:
        teachers.check_clean(net, test, len(split), release)
    evaluation = attack_test_images(net, test, ("pgd20",), device, eps=eps)
    print_accuracies(evaluation, len(test), f"l-inf {eps:.4g}")
    accuracy = evaluation.accuracy()
    clean = round(100 * accuracy["clean"], 2)
    pgd20 = round(100 * accuracy["pgd20"], 2)
    card = dataclasses.replace(card, images=len(test), eps=eps, clean=clean, pgd20=pgd20)
    return teachers.checked(card, len(split), release) if release else card


COMMAND = {
    "train": Command(TrainTeacherOptions, train_teacher),
    "import": Command(ImportTeacherOptions, import_teacher),
    "list": Command(ListTeachersOptions, list_teachers),
    "verify": Command(VerifyTeacherOptions, verify_teacher),
}
