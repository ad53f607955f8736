"""The data sets by name, one file each: those with a line `DATASET = ...`. No torch here.

The halves of class_splits.py come after them.

Packages outside this repository add data sets through the entry-point group `bench.datasets`:
name = "package.module:DATASET".
"""

from __future__ import annotations

from pathlib import Path

from bench.datasets.cifar10 import DATASET as CIFAR10
from bench.datasets.cifar100 import DATASET as CIFAR100
from bench.datasets.class_splits import CLASS_SPLITS
from bench.datasets.dataset import Dataset
from bench.datasets.digits import DATASET as DIGITS
from bench.datasets.stl10 import DATASET as STL10
from bench.system.registry import Registry, collect_files

# Names for Python; `DATASETS` needs none of them.
__all__ = ["CIFAR10", "CIFAR100", "DATASETS", "DIGITS", "REGISTRY", "STL10", "Dataset", "get"]

DATASETS, _faults = collect_files(Path(__file__).parent, __name__, "DATASET", Dataset)
DATASETS |= {info.name: info for info in CLASS_SPLITS}
REGISTRY = Registry("dataset", Dataset, "bench.datasets", DATASETS, _faults)


def get(name: str) -> Dataset:
    """Return the data set called `name`, or that of the images in a folder, "folder:PATH".

    Raise BenchError for one unknown or unusable.
    """
    if name.startswith("folder:"):
        from bench.datasets.image_folder import open_folder

        return open_folder(name)
    return REGISTRY.get(name)
