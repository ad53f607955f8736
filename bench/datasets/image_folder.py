"""Images of one's own: `folder:PATH` and `folder:PATH@SIZE`, a folder for each class."""

from __future__ import annotations

import hashlib
import io
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from bench.datasets.dataset import Arrays, Dataset
from bench.datasets.files.images import SUFFIXES, decode
from bench.system.errors import BenchError, UsageError
from bench.system.files import save_file

# folder:PATH@SIZE#DIGEST, the last two optional.
NAME = re.compile(
    r"folder:(?P<path>[^@#]+)(@(?P<size>[1-9][0-9]{0,3}))?(#(?P<digest>[0-9a-f]{8}))?"
)
DEFAULT_SIZE = 32
# Shares of images that a hash of their names makes test or validation images, where no folder does.
TEST_SHARE, VAL_SHARE = 0.2, 0.1
# Images whose mean and standard deviation stand for all.
SAMPLE = 500

# A path below the folder and the number of its class.
Images = list[tuple[str, int]]


@dataclass(frozen=True)
class ImageFolder(Dataset):
    """A data set in a folder. Its name ends in a hash of its files' names and sizes."""

    @property
    def num_test(self) -> int:  # type: ignore[override]
        """The number of test images."""
        return len(self.splits["test"])

    @property
    def source(self) -> str:
        """The folder."""
        return str(folder_path(self.name))

    @property
    def splits(self) -> dict[str, Images]:
        """The images of "train", "val" and "test"."""
        return list_splits(folder_path(self.name))

    def validation_positions(self, count: int) -> Any:
        """Return the positions of the validation images, which `read` puts last."""
        return np.arange(self.num_train, count)

    def read(self, folder: Path, train: bool) -> Arrays:
        """Read a half. Its resized images are kept in `folder`, that of all data sets."""
        splits, source = self.splits, folder_path(self.name)
        images = splits["train"] + splits["val"] if train else splits["test"]
        labels = [label for _, label in images]
        key = files_digest(source, images, str(self.shape), times=True)
        kept = folder / "resized" / f"{key}.npy"
        if kept.is_file():
            return np.load(kept, allow_pickle=False), labels
        pixels = read_images(source, images, self.shape)
        content = io.BytesIO()
        np.save(content, pixels)
        # Where it cannot be written the next command resizes again.
        with suppress(BenchError):
            save_file(kept, content.getvalue())
        return pixels, labels


def folder_path(name: str) -> Path:
    """Return the folder that a name means."""
    match = NAME.fullmatch(name)
    if not match:
        raise UsageError(f"{name!r} is no folder of images: write folder:PATH or folder:PATH@SIZE")
    return Path(unquote(match["path"]))


@cache
def open_folder(name: str) -> ImageFolder:
    """Return the data set of a folder, with the facts of its files.

    Raise UsageError for no folder of images, or one that has changed since its name was recorded.
    """
    folder, match = folder_path(name), NAME.fullmatch(name)
    assert match
    size, splits = int(match["size"] or DEFAULT_SIZE), list_splits(folder)
    digest = files_digest(folder, [*chain(*splits.values())])[:8]
    if match["digest"] not in (None, digest):
        raise UsageError(f"{name!r}: its files have changed, it is #{digest} now")
    shape = (3, size, size)
    step = max(len(splits["train"]) // SAMPLE, 1)
    sample = read_images(folder, splits["train"][::step][:SAMPLE], shape) / 255
    counts = {split: len(images) for split, images in splits.items()}
    return ImageFolder(
        # A name is part of file names and of addresses with slashes.
        name=f"folder:{quote(str(folder), safe='')}@{size}#{digest}",
        num_classes=len({label for images in splits.values() for _, label in images}),
        shape=shape,
        mean=tuple(sample.mean((0, 2, 3)).round(4).tolist()),
        std=tuple(np.maximum(sample.std((0, 2, 3)), 1e-3).round(4).tolist()),
        pad=size // 8,
        flip=True,
        num_train=counts["train"],
        num_val=counts["val"],
        about=f"images of {folder}: {counts['train']:,} train, {counts['val']:,} validation,"
        f" {counts['test']:,} test",
    )


@cache
def list_splits(folder: Path) -> dict[str, Images]:
    """Return the images of each split. Raise UsageError for a folder that does not have all three.

    The folders train, val and test are the splits. Without a test folder val is the test split;
    what is still missing is drawn by a hash of the names, the same on every machine.
    """
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is no folder")
    named = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = sorted(path for path in named if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    folders = {name.partition("/")[0] for name in names} & {"train", "val", "test"}
    classes: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
    for name in names:
        split, inside = split_of(name, folders)
        if split in classes and "/" in inside:
            classes[split].append((name, inside.split("/")[0]))
    labels = sorted({label for images in classes.values() for _, label in images})
    if len(labels) < 2 or not all(classes.values()):
        counts = ", ".join(f"{len(images)} {split}" for split, images in classes.items())
        raise UsageError(f"{str(folder)!r} has {counts} images in {len(labels)} class folders")
    splits = {}
    for split, images in classes.items():
        splits[split] = [(name, labels.index(label)) for name, label in images]
    return splits


def split_of(name: str, folders: set[str]) -> tuple[str, str]:
    """Return the split of an image and its path below the split's folder."""
    share = hashed_share(name)
    if "train" not in folders:
        if share < TEST_SHARE:
            return "test", name
        return ("val" if share < TEST_SHARE + VAL_SHARE else "train"), name
    split, _, inside = name.partition("/")
    if split == "val" and "test" not in folders:
        return "test", inside
    if split == "train" and not {"val", "test"} <= folders and share < VAL_SHARE:
        return "val", inside
    return split, inside


def hashed_share(name: str) -> float:
    """Return a number in [0, 1) that depends on the name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def files_digest(folder: Path, images: Images, about: str = "", times: bool = False) -> str:
    """Hash the names and sizes of images, and when they were written if `times`."""
    sha = hashlib.sha256(about.encode())
    for name, _ in images:
        facts = (folder / name).stat()
        sha.update(f"{name}\t{facts.st_size}\t{facts.st_mtime_ns if times else 0}\n".encode())
    return sha.hexdigest()


def read_images(folder: Path, images: Images, shape: tuple[int, int, int]) -> Any:
    """Return images (N, C, H, W) of uint8, resized to the shape."""
    return decode(((name, (folder / name).read_bytes()) for name, _ in images), shape)
