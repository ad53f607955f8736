"""The data sets by name. Importing this loads no torch."""

from __future__ import annotations

from bench.datasets.cifar import CIFAR10, CIFAR100
from bench.datasets.dataset import Dataset
from bench.datasets.digits import DIGITS
from bench.datasets.stl10 import STL10
from bench.system.errors import unknown_name

__all__ = ["CIFAR10", "CIFAR100", "DATASETS", "DIGITS", "STL10", "Dataset", "get"]

DATASETS = {info.name: info for info in (DIGITS, CIFAR10, CIFAR100, STL10)}


def get(name: str) -> Dataset:
    """Return the data set called `name`. Raise UsageError for an unknown name."""
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    return DATASETS[name]
