"""The data sets, as facts: sizes, normalisation, augmentation, validation split. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from bench.system.errors import unknown_name


@dataclass(frozen=True)
class Dataset:
    """One data set. `mean` and `std` are per channel, for pixels in [0, 1]; they go inside the networks.

    Training images are zero-padded by `pad` pixels and cropped back to `shape` (C, H, W), and mirrored if `flip`.
    `num_val` images leave the official training set for validation, `num_train` stay.
    """

    name: str
    num_classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    num_train: int
    num_val: int
    about: str


DIGITS = Dataset(
    name="digits",
    num_classes=10,
    shape=(1, 8, 8),
    mean=(0.305,),
    std=(0.376,),
    pad=0,  # the scans are centred; a shift by one of eight pixels is a harder task, not more data
    flip=False,  # a mirrored digit is another sign
    num_train=1_257,
    num_val=180,
    about="scikit-learn's 1,797 scanned digits: 1,257 train, 180 validation, 360 test; nothing to download",
)

CIFAR10 = Dataset(
    name="cifar10",
    num_classes=10,
    shape=(3, 32, 32),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    pad=4,
    flip=True,
    num_train=45_000,
    num_val=5_000,
    about="CIFAR-10: 45,000 train, 5,000 validation, 10,000 test",
)

CIFAR100 = Dataset(
    name="cifar100",
    num_classes=100,
    shape=(3, 32, 32),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    pad=4,
    flip=True,
    num_train=45_000,
    num_val=5_000,
    about="CIFAR-100, fine labels: 45,000 train, 5,000 validation, 10,000 test",
)

STL10 = Dataset(
    name="stl10",
    num_classes=10,
    shape=(3, 96, 96),
    mean=(0.4467, 0.4398, 0.4066),
    std=(0.2603, 0.2566, 0.2713),
    pad=12,
    flip=True,
    num_train=4_500,
    num_val=500,
    about="STL-10, labelled part: 4,500 train, 500 validation, 8,000 test",
)

DATASETS = {info.name: info for info in (DIGITS, CIFAR10, CIFAR100, STL10)}


def get(name: str) -> Dataset:
    """The data set called `name`; raises UsageError for an unknown one."""
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    return DATASETS[name]
