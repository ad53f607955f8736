"""Tiny-ImageNet-200, from its zip or the unpacked folder."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

from bench.datasets.dataset import Arrays, Dataset, Download, OfficialFiles

ARCHIVE = Download(
    urls=(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
    md5="90528d7ca1a48142e341f4ef8d21d0de",
    size=248_100_043,
)
# Folders within the zip.
ROOT, TRAIN, TEST = "tiny-imagenet-200", "train", "val"


class TinyImagenet(Dataset):
    """200 classes of ImageNet in 64x64. The official validation images are the test images.

    The official test images have no labels. Classes are numbered in the order of their WordNet ids.
    """

    num_test = 10_000

    def files(self) -> OfficialFiles:
        half = {ARCHIVE.name: ARCHIVE.md5}
        return OfficialFiles(ROOT, half, half, (ARCHIVE,))

    def damage(self, folder: Path, train: bool) -> str:
        """Say nothing against an unpacked folder, whose files have no official md5."""
        return "" if is_unpacked(folder) else super().damage(folder, train)

    def read(self, folder: Path, train: bool) -> Arrays:
        if is_unpacked(folder):
            return self.read_half(lambda name: (folder / name).read_bytes(), train)
        with ZipFile(folder / ARCHIVE.name) as archive:
            return self.read_half(lambda name: archive.read(f"{ROOT}/{name}"), train)

    def read_half(self, read_file: Callable[[str], bytes], train: bool) -> Arrays:
        """Read a half; `read_file` reads a file by its path in the official folder."""
        from bench.datasets.files.images import decode

        classes = sorted(read_file("wnids.txt").decode().split())
        names = train_names(read_file, classes) if train else test_names(read_file)
        images = decode(((name, read_file(name)) for name in names), self.shape)
        return images, [classes.index(wnid) for wnid in names.values()]


def is_unpacked(folder: Path) -> bool:
    """Return whether a folder is that of the unpacked zip."""
    return (folder / "wnids.txt").is_file()


def train_names(read_file: Callable[[str], bytes], classes: list[str]) -> dict[str, str]:
    """Return the class of each training image by its path, as each class's list of boxes has it."""
    names = {}
    for wnid in classes:
        boxes = read_file(f"{TRAIN}/{wnid}/{wnid}_boxes.txt").decode()
        for image in re.findall(r"^\S+", boxes, re.MULTILINE):
            names[f"{TRAIN}/{wnid}/images/{image}"] = wnid
    return names


def test_names(read_file: Callable[[str], bytes]) -> dict[str, str]:
    """Return the class of each official validation image by its path."""
    annotations = io.StringIO(read_file(f"{TEST}/val_annotations.txt").decode())
    rows = csv.reader(annotations, delimiter="\t")
    return {f"{TEST}/images/{image}": wnid for image, wnid, *_ in rows}


DATASET = TinyImagenet(
    name="tiny-imagenet",
    num_classes=200,
    shape=(3, 64, 64),
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2302, 0.2265, 0.2262),
    pad=8,
    flip=True,
    num_train=90_000,
    num_val=10_000,
    about="Tiny-ImageNet-200, 64x64: 90,000 train, 10,000 validation, 10,000 test",
)
