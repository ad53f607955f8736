"""The accuracy that a network from outside must have, and the normalisation that it needs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor

from bench import datasets
from bench.datasets import Dataset
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
NORMALISATION_IMAGES = 500  # test images on which other normalisations are tried
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def check_image_count(count: int, least: int, flag: str = "--limit-test") -> None:
    """Raise UsageError for a measurement on too few images."""
    if count < least:
        raise UsageError(f"{flag} {count}: at least {least}")


def accuracy_margin(percent: float, images: int, total: float = math.inf) -> float:
    """Return by how many points an accuracy on `images` of `total` may differ from `percent`.

    Four standard errors of a sample without replacement, and half a point for rounding.
    """
    share = percent / 100
    variance = share * (1 - share) / images * (1 - images / total)
    return STANDARD_ERRORS * 100 * math.sqrt(variance) + ROUNDING


def is_by_chance(correct: Tensor, classes: int) -> bool:
    """Return whether guessing may classify as many of these images correctly."""
    chance = 100 / classes
    return percent_true(correct) <= chance + accuracy_margin(chance, len(correct))


def check_clean_accuracy(net: Net, test: Split, total: int, release: Release) -> None:
    """Raise BenchError unless `net` classifies `test`, of `total` test images, as it must.

    It must not be worse than with pixels normalised in another usual way. Its accuracy must be the
    published one; without one it must be better than by chance.
    """
    check_image_count(len(test), MIN_TEST_IMAGES)
    better = better_normalisation(net, test, release.dataset)
    if better:
        remedy = "wrong normalisation (--mean and --std, for a file that holds none)"
        raise BenchError(f"{better}: {remedy}")
    correct = classify_correctly(net, test)
    clean = percent_true(correct)
    measured = f"{clean:.1f} % of {len(test):,} test images are classified correctly"
    if release.clean is not None:
        margin = accuracy_margin(release.clean, len(test), total)
        if abs(clean - release.clean) > margin:
            published = f"the {release.clean} % of {release.name}, give or take {margin:.1f}"
            raise BenchError(f"{measured}, not {published}: this is another network")
        return
    if is_by_chance(correct, net.num_classes):
        causes = "wrong normalisation, other labels or an untrained network"
        raise BenchError(f"{measured}, no more than by chance: {causes}")


def normalisation_flags(networks: dict[str, Net], test: Split, dataset: str) -> dict[str, str]:
    """Flag networks, the attacked one under "", that need another normalisation of the pixels."""
    flags = {}
    for role, net in networks.items():
        better = better_normalisation(net, test, dataset)
        if better:
            flags[f"wrong-normalisation-{role}".rstrip("-")] = better
    return flags


def better_normalisation(net: Net, test: Split, dataset: str) -> str:
    """Describe the usual normalisation by which `net` is clearly better; "" if there is none.

    It beats chance, too. Only the first test images are tried.
    """
    test = test.select(slice(NORMALISATION_IMAGES))
    correct = classify_correctly(net, test)
    chance, best = 100 / net.num_classes, ""
    highest = chance + accuracy_margin(chance, len(test))
    for way, (mean, std) in usual_normalisations(datasets.get(dataset)).items():
        other = classify_correctly(with_normalisation(net, mean, std), test)
        gained = int((other & ~correct).sum())
        lost = int((correct & ~other).sum())
        is_clearly_better = gained - lost > STANDARD_ERRORS * math.sqrt(gained + lost)
        if is_clearly_better and percent_true(other) > highest:
            highest, best = percent_true(other), way
    if not best:
        return ""
    measured = (
        f"{percent_true(correct):.1f} % of {len(test):,} test images are classified correctly"
    )
    return f"{measured}, but {highest:.1f} % if the pixels are normalised {best}"


def usual_normalisations(info: Dataset) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return mean and std per channel of the normalisations that networks are trained with."""
    channels = info.shape[0]
    ways = {
        "not at all": ((0.0,) * channels, (1.0,) * channels),
        f"by the mean and std of {info.name}": (info.mean, info.std),
        "to [-1, 1]": ((0.5,) * channels, (0.5,) * channels),
        "to [0, 255]": ((0.0,) * channels, (1 / 255,) * channels),
    }
    return ways | {"by the mean and std of ImageNet": IMAGENET} if channels == 3 else ways


def check_robust_accuracy(card: Card, total: int, release: Release) -> Card:
    """Note on a measured card the published numbers that it was compared with.

    Raise BenchError if PGD-20 fools more than the stronger AutoAttack does at a radius no smaller.
    """
    published = release.autoattack
    if published is None:
        note = "better than chance and than other normalisations; none is published"
        return replace(card, checked=note)
    margin = accuracy_margin(published, card.images, total)
    in_published_ball = card.norm == "Linf" and card.eps <= release.eps
    if in_published_ball and card.pgd20 < published - margin:
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
