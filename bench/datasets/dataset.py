"""The facts of a data set, and how it is read. Importing this loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.system.errors import UsageError
from bench.system.files import md5_of_file

# Images (N, C, H, W) in 0 to 255, and labels (N,), as arrays of numpy or lists.
Arrays = tuple[Any, Any]


@dataclass(frozen=True)
class Download:
    """A file to download. Each address has the same content."""

    urls: tuple[str, ...]
    md5: str
    size: int  # bytes

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.urls[0].rsplit("/", 1)[-1]


@dataclass(frozen=True)
class OfficialFiles:
    """The files of a data set.

    folder: where they lie below the folder of all data sets. train, test: the md5 of each file that
    a half needs, by name. downloads: archives of the files, or the files themselves.
    """

    folder: str
    train: dict[str, str]
    test: dict[str, str]
    downloads: tuple[Download, ...]

    @property
    def hashes(self) -> dict[str, str]:
        """The md5 of all files."""
        return self.train | self.test

    @property
    def size(self) -> int:
        """Bytes of all downloads."""
        return sum(download.size for download in self.downloads)


@dataclass(frozen=True)
class Dataset:
    """One data set. Its fields are facts that a record states; a subclass knows how it is read.

    shape: (C, H, W). mean, std: per channel, for pixels in [0, 1]; they go inside the networks.
    pad, flip: training images are zero-padded by `pad` pixels, cropped back and mirrored if `flip`.
    num_val images leave the official training set for validation, num_train stay.
    """

    # Of the official test set. No field: a record states what was evaluated.
    num_test: ClassVar[int]
    # Of pixels and labels of each half, "train" and "test", for files of another form.
    pixels_sha256: ClassVar[dict[str, str]] = {}

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

    @property
    def whole(self) -> Dataset:
        """The data set that the files are of: this one, unless it is a part of another."""
        return self

    @property
    def source(self) -> str:
        """What brings the data, in words."""
        return "the official files"

    def files(self) -> OfficialFiles | None:
        """Return the official files, None for data that needs none below the folder of all."""
        return None

    def damage(self, folder: Path, train: bool) -> str:
        """Describe a file of a half that is missing from `folder` or damaged, "" if none is."""
        files = self.files()
        return damage_in(folder, files.train if train else files.test) if files else ""

    def read(self, folder: Path, train: bool) -> Arrays:
        """Read the training half or the test half from the folder of the official files.

        What `damage` looks at was checked.
        """
        raise NotImplementedError

    def select(self, half: Arrays, train: bool) -> Arrays:
        """Return its own images and labels of a half of the whole."""
        return half

    def check_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Raise UsageError unless a network's mean and std have a number per channel, or none."""
        channels = self.shape[0]
        right_count = len(mean) == len(std) and len(mean) in (0, channels)
        finite = all(map(math.isfinite, mean + std))
        if not right_count or not finite or min(std, default=1.0) <= 0:
            rule = f"both with {channels} numbers for {self.name}, std above 0, or neither"
            raise UsageError(f"--mean and --std: {rule}")

    def validation_positions(self, count: int) -> Any:
        """Return which of so many training images are for validation, None to have them drawn."""
        return None


def damage_in(folder: Path, hashes: dict[str, str]) -> str:
    """Describe the first file that is missing or has another md5; "" if none is."""
    for file, md5 in hashes.items():
        path = folder / file
        if not path.is_file():
            return f"{file} is missing from {str(folder)!r}"
        if md5_of_file(path) != md5:
            size = f"{path.stat().st_size:,} bytes"
            return f"{str(path)!r} is damaged or cut short ({size}, not the official md5)"
    return ""
