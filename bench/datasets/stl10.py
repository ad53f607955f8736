"""STL-10, the labelled part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.datasets.dataset import Arrays
from bench.datasets.files.torchvision_files import TorchvisionDataset


class Stl10(TorchvisionDataset):
    """The labelled part of STL-10, read by torchvision."""

    torchvision_class = "STL10"
    # The files after these two are 2.5 GB of unlabelled images.
    labelled_files = 2
    # The archive has those too.
    archive_bytes = 2_640_397_119
    num_test = 8_000

    def read_half(self, official: Any, root: Path, train: bool) -> Arrays:
        half = official(root, split="train" if train else "test")
        return half.data, half.labels


DATASET = Stl10(
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
