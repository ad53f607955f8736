"""Released teachers, as facts: where the file is, what network it holds, how accurate it is. No torch here.

Accuracies are those of RobustBench (robustbench.github.io, its `model_info`), on all 10,000 test images, and for Gowal
2021 those of its table. RobustBench and the authors publish no sha256, so none is known here: what an entry's file
holds is checked by its accuracy. No file was downloaded when this was written; the names of its tensors are those of
the published network definitions.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace

from bench import datasets
from bench.protocol import suites
from bench.system.errors import UsageError

MEAN10, STD10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
MEAN100, STD100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
DRIVE = "https://drive.google.com/file/d/"
DEEPMIND = "https://storage.googleapis.com/dm-adversarial-robustness/"
WANG = "https://huggingface.co/wzekai99/DM-Improves-AT/resolve/main/checkpoint/"


@dataclass(frozen=True)
class Release:
    """One released network, under its name at RobustBench, or one of somebody's own.

    clean, autoattack: accuracy in percent, None where none is published; eps: the l-inf radius of `autoattack`, pixels
    in [0, 1]. mean, std: per channel, for a file that holds none; empty if the network takes raw pixels. sha256: of the
    file, empty where none is published.
    """

    name: str
    dataset: str
    arch: str
    where: str
    clean: float | None
    autoattack: float | None
    paper: str
    sha256: str = ""
    eps: float = 8 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


RELEASES = (
    Release(  # the file stores a block that the network never uses, `sub_block1`
        "Zhang2019Theoretically",
        "cifar10",
        "wrn34-10",
        f"{DRIVE}1hPz9QQwyM7QSuWu-ANG_uXR-29xtL8t_",
        clean=84.92,
        autoattack=53.08,
        eps=0.031,
        paper="TRADES, arXiv 1901.08573",
    ),
    Release(
        "Chen2021LTD_WRN34_10",
        "cifar10",
        "wrn34-10",
        f"{DRIVE}1-0RoQKYvHLNh7hZ71wJjSit1XtrJQo9D",
        clean=85.21,
        autoattack=56.94,
        paper="LTD, arXiv 2111.02331",
    ),
    Release(
        "Chen2021LTD_WRN34_20",
        "cifar10",
        "wrn34-20",
        f"{DRIVE}1-5JmY9rapuGwCUc2nPvy7Rb_sn_dHhFm",
        clean=86.03,
        autoattack=57.71,
        paper="LTD, arXiv 2111.02331",
    ),
    Release(
        "Addepalli2021Towards_RN18",
        "cifar10",
        "resnet18",
        f"{DRIVE}1-1DxecXz5U_xZ54DVdE-GVm71Tiox-Ri",
        clean=80.24,
        autoattack=51.06,
        paper="OAAT, arXiv 2210.09852",
    ),
    Release(
        "Addepalli2022Efficient_RN18",
        "cifar10",
        "resnet18",
        f"{DRIVE}1m5vhdzIUUKhDbsZdOG9z76Eyp6f4xe_f",
        clean=85.71,
        autoattack=52.48,
        paper="DAJAT, arXiv 2210.15318",
    ),
    Release(
        "Gowal2021Improving_28_10_ddpm_100m",
        "cifar10",
        "wrn28-10-silu",
        f"{DRIVE}12L8YE6VBgUDKyW6GMSNefSYj2gg4LEKx",
        clean=87.50,
        autoattack=63.38,
        paper="arXiv 2110.09468",
        mean=MEAN10,
        std=STD10,
    ),
    Release(
        "Rebuffi2021Fixing_28_10_cutmix_ddpm",
        "cifar10",
        "wrn28-10-silu",
        f"{DEEPMIND}cifar10_linf_wrn28-10_cutmix_ddpm_v2.pt",
        clean=87.33,
        autoattack=60.75,
        paper="arXiv 2103.01946",
        mean=MEAN10,
        std=STD10,
    ),
    Release(
        "Rebuffi2021Fixing_R18_ddpm",
        "cifar10",
        "preactresnet18-silu",
        f"{DEEPMIND}cifar10_linf_resnet18_ddpm.pt",
        clean=83.53,
        autoattack=56.66,
        paper="arXiv 2103.01946",
        mean=MEAN10,
        std=STD10,
    ),
    Release(
        "Wang2023Better_WRN-28-10",
        "cifar10",
        "wrn28-10-silu",
        f"{WANG}cifar10_linf_wrn28-10.pt",
        clean=92.44,
        autoattack=67.31,
        paper="arXiv 2302.04638",
        mean=MEAN10,
        std=STD10,
    ),
    Release(
        "Standard",
        "cifar10",
        "wrn28-10",
        f"{DRIVE}1t98aEuzeTL8P7Kpd5DIrCoCL21BNZUhC",
        clean=94.78,
        autoattack=0.0,
        paper="natural training, RobustBench",
    ),
    Release(
        "Gowal2020Uncovering",
        "cifar100",
        "wrn70-16-silu",
        f"{DEEPMIND}cifar100_linf_wrn70-16_without.pt",
        clean=60.86,
        autoattack=30.03,
        paper="arXiv 2010.03593",
        mean=MEAN100,
        std=STD100,
    ),
    Release(
        "Chen2021LTD_WRN34_10",
        "cifar100",
        "wrn34-10",
        f"{DRIVE}1-I4NZyULdEWH46b4EaCTxuuRo4eFXsg_",
        clean=64.07,
        autoattack=30.59,
        paper="LTD, arXiv 2111.02331",
    ),
    Release(
        "Wang2023Better_WRN-28-10",
        "cifar100",
        "wrn28-10-silu",
        f"{WANG}cifar100_linf_wrn28-10.pt",
        clean=72.58,
        autoattack=38.83,
        paper="arXiv 2302.04638",
        mean=MEAN100,
        std=STD100,
    ),
    Release(
        "Rice2020Overfitting",
        "cifar100",
        "preactresnet18",
        f"{DRIVE}1XXNZn3fZBOkD1aqNL1cvcD8zZDccyAZ6",
        clean=53.83,
        autoattack=18.95,
        paper="arXiv 2002.11569",
        mean=(0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
        std=(0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
    ),
)


def resolve(
    name: str,
    arch: str = "",
    dataset: str = "",
    sha256: str = "",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Release:
    """The release called `name`, or else what the other arguments say of a network of one's own.

    Raises UsageError for a name that cannot be given, for a network that is not described in full, and where an argument
    contradicts the release.
    """
    if not name.replace("_", "").replace("-", "").isalnum() or name in ("robust", "natural"):
        raise UsageError(
            f"teacher name {name!r}: letters, digits, - and _, neither robust nor natural"
        )
    named = [release for release in RELEASES if release.name == name]
    if not named:
        return _own(name, arch, dataset, sha256, mean, std)
    fitting = [release for release in named if dataset in ("", release.dataset)]
    if len(fitting) != 1:
        known = " and ".join(release.dataset for release in named)
        raise UsageError(
            f"{name} is a release for {known}: say which with --dataset, or choose another name"
        )
    release = fitting[0]
    stated: dict[str, tuple[object, object]] = {
        "arch": (arch, release.arch),
        "mean": (mean, release.mean),
        "std": (std, release.std),
        "sha256": (sha256, release.sha256 or sha256),
    }
    for flag, (given, fact) in stated.items():
        if given and given != fact:
            raise UsageError(
                f"--{flag}: the release {name} has {fact or 'none'}; choose another name for another file"
            )
    return replace(release, sha256=release.sha256 or sha256)


def _own(
    name: str, arch: str, dataset: str, sha256: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Release:
    """A network of which the accuracy is not known; `eps` is that of the first suite with its data."""
    if not arch or not dataset:
        near = difflib.get_close_matches(name, {release.name for release in RELEASES}, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`teacher list` shows them"
        raise UsageError(
            f"{name!r} is no known release ({hint}), and a file of your own needs --arch and --dataset"
        )
    channels = datasets.get(dataset).shape[0]
    counted = {len(mean), len(std)} in ({0}, {channels})
    if (
        not counted
        or not all(map(math.isfinite, (*mean, *std)))
        or any(value <= 0 for value in std)
    ):
        raise UsageError(
            f"--mean and --std: both with {channels} numbers for {dataset}, std above 0, or neither"
        )
    eps = next(suite.eps for suite in suites.SUITES.values() if dataset in suite.datasets)
    return Release(name, dataset, arch, "", None, None, "", sha256, eps, mean, std)
