"""CIFAR-100."""

from __future__ import annotations

from bench.datasets.cifar10 import Cifar10


class Cifar100(Cifar10):
    """CIFAR-100, read by torchvision."""

    torchvision_class = "CIFAR100"
    archive_bytes = 169_001_437
    # Not known: the official files were never here.
    pixels_sha256 = {}  # noqa: RUF012
    mirrors = ("https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",)


DATASET = Cifar100(
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
