"""The accuracy that an imported teacher must have."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor

from bench import datasets
from bench.datasets.augmentation import to_float
from bench.datasets.splits import Split
from bench.system.errors import BenchError, UsageError
from bench.teachers.cards import Card
from bench.teachers.releases import Release
from methods.base import Net

MIN_TEST_IMAGES = 100  # test images from which an accuracy says something about an imported teacher
# A file that is in order exceeds four standard errors once in ten thousand times.
STANDARD_ERRORS = 4
ROUNDING = 0.5  # points of accuracy by which another machine or library may differ
BATCH = 250


def check_image_count(count: int, least: int) -> None:
    """Raise UsageError for a measurement on too few test images."""
    if count < least:
        raise UsageError(f"--limit-test {count}: at least {least}")


def accuracy_margin(percent: float, images: int, total: float = math.inf) -> float:
    """Return by how many points an accuracy on `images` of `total` may differ from `percent`.

    Four standard errors of a sample without replacement, and half a point for rounding.
    """
    share = percent / 100
    variance = share * (1 - share) / images * (1 - images / total)
    return STANDARD_ERRORS * 100 * math.sqrt(variance) + ROUNDING


def check_clean_accuracy(net: Net, test: Split, total: int, release: Release) -> None:
    """Raise BenchError unless `net` classifies `test`, of `total` test images, as it must.

    Its accuracy must be the published one. Without one it must be better than by chance, and not
    worse than with pixels normalised in another way: not at all, or as the data set.
    """
    check_image_count(len(test), MIN_TEST_IMAGES)
    correct = classify_correctly(net, test)
    clean = percent_true(correct)
    measured = f"{clean:.1f} % of {len(test):,} test images are classified correctly"
    if release.clean is not None:
        margin = accuracy_margin(release.clean, len(test), total)
        if abs(clean - release.clean) > margin:
            published = f"the {release.clean} % of {release.name}, give or take {margin:.1f}"
            raise BenchError(f"{measured}, not {published}: this is another network")
        return
    chance = 100 / net.num_classes
    if clean <= chance + accuracy_margin(chance, len(test)):
        causes = "wrong normalisation, other labels or an untrained network"
        raise BenchError(f"{measured}, no more than by chance: {causes}")
    better = better_normalisation(net, test, correct, release.dataset)
    if better:
        remedy = "wrong normalisation (--mean and --std, for a file that holds none)"
        raise BenchError(f"{measured}, but {better}: {remedy}")


def better_normalisation(net: Net, test: Split, correct: Tensor, dataset: str) -> str:
    """Describe a normalisation by which `net` is clearly better; "" if there is none.

    correct: (N,) bool, which test images it classifies correctly as it is.
    """
    info = datasets.get(dataset)
    channels = len(info.mean)
    ways = {
        "not at all": ((0.0,) * channels, (1.0,) * channels),
        f"by the mean and std of {dataset}": (info.mean, info.std),
    }
    for way, (mean, std) in ways.items():
        other = classify_correctly(with_normalisation(net, mean, std), test)
        gained = int((other & ~correct).sum())
        lost = int((correct & ~other).sum())
        if gained - lost > STANDARD_ERRORS * math.sqrt(gained + lost):
            return f"{percent_true(other):.1f} % if the pixels are normalised {way}"
    return ""


def check_robust_accuracy(card: Card, total: int, release: Release) -> Card:
    """Note on a measured card the published numbers that it was compared with.

    Raise BenchError if PGD-20 fools more than the stronger AutoAttack does at a radius no smaller.
    """
    published = release.autoattack
    if published is None:
        note = "better than chance and than other normalisations; none is published"
        return replace(card, checked=note)
    margin = accuracy_margin(published, card.images, total)
    if card.eps <= release.eps and card.pgd20 < published - margin:
        measured = f"{card.pgd20:.1f} % of {card.images:,} test images withstand PGD-20"
        bound = f"AutoAttack leaves {release.name} {published} %"
        raise BenchError(f"{measured}, {bound}: this is another network")
    return replace(card, checked=f"published: clean {release.clean} %, AutoAttack {published} %")


def with_normalisation(net: Net, mean: tuple[float, ...], std: tuple[float, ...]) -> Net:
    """Copy `net` with another mean and std per channel."""
    copied = copy.deepcopy(net)
    copied.mean.copy_(copied.mean.new_tensor(mean).view_as(copied.mean))
    copied.std.copy_(copied.std.new_tensor(std).view_as(copied.std))
    return copied


@torch.no_grad()
def classify_correctly(net: Net, test: Split) -> Tensor:
    """Return the test images that `net` classifies correctly: (N,) bool, on the CPU."""
    correct = []
    for x, y in zip(torch.split(test.x, BATCH), torch.split(test.y, BATCH), strict=True):
        logits = net(to_float(x.to(net.mean.device)))
        correct.append(logits.argmax(dim=1).cpu() == y)
    return torch.cat(correct)


def percent_true(flags: Tensor) -> float:
    """Return the share of True, in percent."""
    return 100 * flags.float().mean().item()
