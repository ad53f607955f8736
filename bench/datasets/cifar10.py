"""CIFAR-10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.datasets.dataset import Arrays
from bench.datasets.files.torchvision_files import TorchvisionDataset


class Cifar10(TorchvisionDataset):
    """CIFAR-10, read by torchvision."""

    torchvision_class = "CIFAR10"
    archive_bytes = 170_498_071
    mirrors = ("https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",)
    num_test = 10_000
    pixels_sha256 = {  # noqa: RUF012
        "train": "973ef2abb5897efc795681a4d79a6f5f642fa2bcb1a828f7476017c89db53a57",
        "test": "2c33b053d1cd726af8d86e174a96dd89d7000ba1412add026d68142375b89d51",
    }

    def read_half(self, official: Any, root: Path, train: bool) -> Arrays:
        half = official(root, train=train)
        # torchvision's CIFAR is (N, H, W, C).
        return half.data.transpose(0, 3, 1, 2), half.targets


DATASET = Cifar10(
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
