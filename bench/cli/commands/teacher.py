"""Train, import, list or verify a teacher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from bench.cli.parsing import Command
from bench.protocol import suites
from bench.protocol.options import CommonOptions, ProtocolOptions, StoreFolder, option
from bench.system.log import set_verbosity
from leaderboards.schema.fields import Norm

if TYPE_CHECKING:
    from bench.teachers.cards import Card
    from bench.teachers.releases import Release
    from methods.base import Net


@dataclass(frozen=True, kw_only=True)
class TrainTeacherOptions(ProtocolOptions):
    """Train a suite's teacher now, as `run` does on first use."""

    role: Annotated[Literal["robust", "natural"], option(text="of the suite's two")] = "robust"
    arch: Annotated[str, option("MODEL", "another network; see `list`", "the suite's")] = ""


@dataclass(frozen=True, kw_only=True)
class ImportTeacherOptions(CommonOptions):
    """Take a checkpoint file as a teacher, after its hash, keys and test accuracy are checked.

    A release of `teacher list` brings model, data set, normalisation and expected accuracy; any
    other name needs --arch and --dataset, unless the file is a safetensors of `model` or `export`.
    """

    name: Positional[Annotated[str, option("NAME", "a release, or the name for `--teacher`")]]
    file: Positional[
        Annotated[Path, option("FILE", "the checkpoint, or `hf:OWNER/NAME[@REVISION][:FILE]`")]
    ]
    arch: Annotated[str, option("MODEL", "such as wrn34-10; see `list`")] = ""
    dataset: Annotated[str, option("NAME", "what it was trained on")] = ""
    sha256: Annotated[str, option("HEX", "refuse the file unless this is its hash")] = ""
    mean: Annotated[tuple[float, ...], option(text="per channel, if the file has none")] = ()
    std: Annotated[tuple[float, ...], option(text="as --mean")] = ()
    key: Annotated[str, option("NAME", "which network of the file, where several fit")] = ""
    limit_test: Annotated[int, option("N", "use the first N test images, 100 or more")] = 1000


@dataclass(frozen=True, kw_only=True)
class ListTeachersOptions:
    """List the teachers at hand, and the releases that can be had."""

    store: StoreFolder = Path("runs")


@dataclass(frozen=True, kw_only=True)
class VerifyTeacherOptions(CommonOptions):
    """Check a teacher's file, measure clean accuracy and PGD-20, and write them on its card.

    Then print how sure it is of training images, by class and on those that stay unlearnable, and
    what that means for the methods that weigh images by their teacher.
    """

    name: Positional[Annotated[str, option("NAME", "as `teacher list` shows it")]]
    suite: Annotated[
        str, option("NAME|FILE.toml", "whose norm and eps to use", "the first with its data set")
    ] = ""
    limit_test: Annotated[int, option("N", "use the first N test images")] = 1000
    limit_train: Annotated[int, option("N", "of the diagnostic: the first N training images")] = (
        1000
    )


MeasureOptions = ImportTeacherOptions | VerifyTeacherOptions


def train_teacher(options: TrainTeacherOptions) -> int:
    """Train a teacher for each data set; return the exit code."""
    set_verbosity(options.quiet, options.verbose)
    from bench import datasets, models
    from bench.execution import plan
    from bench.execution.grid.run import run_grid
    from bench.execution.suite_file import resolve_suite

    suite = resolve_suite(options.suite)
    names = plan.requested_datasets(options, suite)
    if options.arch:
        for name in names:
            models.check(options.arch, datasets.get(name))
    runs = [plan.plan_teacher(options, suite, name, options.role, options.arch) for name in names]
    return 1 if run_grid(options, runs) else 0


def import_teacher(options: ImportTeacherOptions) -> None:
    """Copy a checkpoint to the teachers after hash, keys and accuracy are checked."""
    from bench import datasets, models
    from bench.models import checkpoint, hub
    from bench.system.files import sha256_of_file
    from bench.teachers import cards, checks
    from bench.teachers.releases import Release, load_file, resolve_release

    checks.check_image_count(options.limit_test, checks.MIN_TEST_IMAGES)
    file, address = hub.locate(options.file)
    arch, dataset = checkpoint.stated_network(file, options.arch, options.dataset)
    sha256, mean, std, key = options.sha256.lower(), options.mean, options.std, options.key
    request = Release(options.name, dataset, arch, sha256=sha256, mean=mean, std=std, key=key)
    release = resolve_release(request)
    models.check(release.arch, datasets.get(release.dataset))
    sha256 = release.sha256
    net = load_file(file, release)
    card = cards.draft_card(options.store, release, sha256_of_file(file), address or file.name)
    card = measure_teacher(net, card, release, options)
    cards.add_teacher(options.store, file, card)
    if not sha256:
        print(f"no sha256 was stated: the card holds the file's own, {card.sha256}")
    print(f"{card.identity} is ready: `run --teacher {options.name}`")


def list_teachers(options: ListTeachersOptions) -> None:
    """Print a line for each teacher at hand, then for each release."""
    from bench.teachers.cards import read_cards
    from bench.teachers.releases import RELEASES

    for card in read_cards(options.store):
        network = f"{card.arch:16} {card.dataset:10} {card.sha256[:16]}"
        print(f"{card.identity:40} {network} {card.origin}; {card.measured}")
    print("\nreleases, for `teacher import NAME FILE` when the file is downloaded", end=" ")
    print("(clean and AutoAttack in percent):")
    for release in RELEASES:
        network = f"{release.arch:20} {release.dataset:9}"
        accuracy = f"{release.clean:5.2f} {release.autoattack:5.2f}"
        print(f"{release.name:40} {network} {accuracy}  {release.paper:32} {release.where}")


def verify_teacher(options: VerifyTeacherOptions) -> None:
    """Check hash and keys, measure clean accuracy and PGD-20, and write them on the card.

    Print the diagnostic on training images.
    """
    from bench import datasets
    from bench.execution.suite_file import resolve_suite
    from bench.teachers import cards, checks
    from bench.teachers.releases import Release, resolve_release

    checks.check_image_count(options.limit_test, 1)
    checks.check_image_count(options.limit_train, 1, "--limit-train")
    card = cards.find_card(options.store, options.name)
    info = datasets.get(card.dataset)
    norm: Norm = "Linf"
    eps, release = suites.default_eps(info.name), None
    if card.imported:
        request = Release(card.name, info.name, card.arch, mean=card.mean, std=card.std)
        release = resolve_release(request)
        eps = release.eps
    if options.suite:
        suite = resolve_suite(options.suite)
        norm, eps = suite.norm, suite.eps
    net = cards.load_teacher(options.store, card, info)
    print(f"{card.identity}: file has sha256 {card.sha256}, a {card.arch} for {card.dataset}")
    card = dataclasses.replace(card, norm=norm, eps=eps)
    cards.write_card(options.store, measure_teacher(net, card, release, options))
    print_diagnostic(net, card, options)


def print_diagnostic(net: Net, card: Card, options: VerifyTeacherOptions) -> None:
    """Print how sure a teacher is of training images, in the norm and radius of its card."""
    from bench.datasets.loading import load_data
    from bench.system import environment
    from bench.teachers import diagnostic

    # The images of a split are in a fixed random order.
    train = load_data(card.dataset, options.data_root, test=False).train
    train = train.select(slice(options.limit_train))
    net = net.to(environment.resolve_device(options.device))
    outputs = diagnostic.collect_outputs(net, train, card.norm, card.eps)
    attack = diagnostic.describe_attack(card.norm, card.eps)
    for line in diagnostic.report(outputs, attack):
        print(line)


def measure_teacher(net: Net, card: Card, release: Release | None, options: MeasureOptions) -> Card:
    """Return the card with clean accuracy and PGD-20 in percent, checked against the release.

    PGD-20 is in the card's norm and radius.
    """
    from bench.datasets.loading import load_data
    from bench.execution.evaluation import attack_test_images
    from bench.system import environment
    from bench.teachers import checks

    device = environment.resolve_device(options.device)
    split = load_data(card.dataset, options.data_root).test
    net = net.to(device)
    test = split.select(slice(options.limit_test))
    if release:
        checks.check_clean_accuracy(net, test, len(split), release)
    evaluation = attack_test_images(net, test, ("pgd20",), device, norm=card.norm, eps=card.eps)
    print(evaluation)
    accuracy = evaluation.accuracy()
    clean = round(100 * accuracy["clean"], 2)
    pgd20 = round(100 * accuracy["pgd20"], 2)
    card = dataclasses.replace(card, images=len(test), clean=clean, pgd20=pgd20)
    return checks.check_robust_accuracy(card, len(split), release) if release else card


COMMAND = {
    "train": Command(TrainTeacherOptions, train_teacher),
    "import": Command(ImportTeacherOptions, import_teacher),
    "list": Command(ListTeachersOptions, list_teachers),
    "verify": Command(VerifyTeacherOptions, verify_teacher),
}
