"""Half of the classes of a data set, as data sets: one to train on, the other to transfer to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from bench.datasets.cifar10 import DATASET as CIFAR10
from bench.datasets.dataset import Arrays, Dataset, OfficialFiles
from bench.datasets.digits import DATASET as DIGITS


class ClassSplit(Dataset):
    """The images of some classes of another data set, whose labels are numbered from 0.

    Files and statistics are those of the whole, and an image for training, validation or test is
    for the same there. A subclass states the whole, the classes and the number of test images.
    """

    part_of: ClassVar[Dataset]
    classes: ClassVar[range]

    @classmethod
    def with_sizes(cls, num_train: int, num_val: int) -> ClassSplit:
        """Return the data set, of so many training and validation images."""
        whole, first, last = cls.part_of, cls.classes[0], cls.classes[-1]
        counts = f"{num_train:,} train, {num_val:,} validation, {cls.num_test:,} test"
        return cls(
            name=f"{whole.name}-{first}-{last}",
            num_classes=len(cls.classes),
            shape=whole.shape,
            mean=whole.mean,
            std=whole.std,
            pad=whole.pad,
            flip=whole.flip,
            num_train=num_train,
            num_val=num_val,
            about=f"the classes {first} to {last} of {whole.name}: {counts}",
        )

    @property
    def whole(self) -> Dataset:
        """The data set that the files are of."""
        return self.part_of

    @property
    def source(self) -> str:
        """What brings the whole."""
        return self.whole.source

    def files(self) -> OfficialFiles | None:
        """Return the official files of the whole."""
        return self.whole.files()

    def read(self, folder: Path, train: bool) -> Arrays:
        """Read the part's images of a half."""
        return self.select(self.whole.read(folder, train), train)

    def select(self, half: Arrays, train: bool) -> Arrays:
        """Return the images of the classes; those that the whole validates on come last."""
        import numpy as np

        from bench.datasets.splits import validation_rows

        images, labels = map(np.asarray, half)
        rows = np.arange(len(labels))
        if train:
            val_rows = validation_rows(self.whole, labels)
            rows = np.concatenate([np.setdiff1d(rows, val_rows), val_rows])
        rows = rows[np.isin(labels[rows], self.classes)]
        return images[rows], labels[rows] - self.classes[0]

    def validation_positions(self, count: int) -> Any:
        """Return the positions of the validation images, which `select` puts last."""
        import numpy as np

        return np.arange(self.num_train, count)


class Digits0To4(ClassSplit):
    """The digits 0 to 4."""

    part_of, classes, num_test = DIGITS, range(5), 180


class Digits5To9(ClassSplit):
    """The digits 5 to 9."""

    part_of, classes, num_test = DIGITS, range(5, 10), 180


class Cifar10From0To4(ClassSplit):
    """Airplane, automobile, bird, cat and deer."""

    part_of, classes, num_test = CIFAR10, range(5), 5_000


class Cifar10From5To9(ClassSplit):
    """Dog, frog, horse, ship and truck."""

    part_of, classes, num_test = CIFAR10, range(5, 10), 5_000


CLASS_SPLITS = (
    Digits0To4.with_sizes(631, 90),
    Digits5To9.with_sizes(626, 90),
    Cifar10From0To4.with_sizes(22_500, 2_500),
    Cifar10From5To9.with_sizes(22_500, 2_500),
)
