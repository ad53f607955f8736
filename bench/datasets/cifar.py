"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.datasets.dataset import Arrays, Dataset


class Cifar10(Dataset):
    """CIFAR-10, read by torchvision."""

    torchvision_class = "CIFAR10"
    download_bytes = 170_498_071
    num_test = 10_000

    def read(self, official: Any, root: Path, train: bool) -> Arrays:
        half = official(root, train=train)
        # torchvision's CIFAR is (N, H, W, C).
        return half.data.transpose(0, 3, 1, 2), half.targets


class Cifar100(Cifar10):
    """CIFAR-100, read by torchvision."""

    torchvision_class = "CIFAR100"
    download_bytes = 169_001_437


CIFAR10 = Cifar10(
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

CIFAR100 = Cifar100(
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
