"""The files of a data set below the folder of all data sets: where, whether undamaged, read."""

from __future__ import annotations

import stat
from pathlib import Path

from bench.datasets.dataset import Arrays, Dataset
from bench.datasets.files.pixels import pixel_file, read_pixels
from bench.system.errors import BenchError, one_line
from bench.system.files import file_mode


def folder_of(info: Dataset, root: Path) -> Path:
    """Return the folder of a data set's files; the root itself for one without files."""
    files = info.files()
    return root / files.folder if files else root


def damage_of(info: Dataset, root: Path) -> str:
    """Describe what keeps a data set from being read, "" if nothing does."""
    whole, folder = info.whole, folder_of(info, root)
    return half_damage(whole, folder, True) or half_damage(whole, folder, False)


def half_damage(info: Dataset, folder: Path, train: bool) -> str:
    """Describe what keeps one half from being read, "" if nothing does."""
    damage = info.damage(folder, train)
    if damage and pixel_file(info, folder).is_file():
        try:
            read_pixels(info, folder, train)
        except BenchError as error:
            return str(error)
        return ""
    return damage


def read_half(info: Dataset, root: Path, train: bool) -> Arrays:
    """Check and read the training half or the test half.

    Raise BenchError for missing or damaged files.
    """
    return info.select(read_whole_half(info.whole, root, train), train)


def read_whole_half(info: Dataset, root: Path, train: bool) -> Arrays:
    """Check and read all images of a half, as `read_half`."""
    folder = folder_of(info, root)
    remedy = f"run `python -m bench data fetch {info.name}`"
    if not stat.S_ISDIR(file_mode(folder)) and folder != root:
        raise BenchError(
            f"{info.name} is not under {str(root)!r}: {remedy},"
            f" or put the official folder {folder.name} there"
        )
    damage = info.damage(folder, train)
    try:
        if damage and pixel_file(info, folder).is_file():
            return read_pixels(info, folder, train)
        if not damage:
            return info.read(folder, train)
    except (BenchError, RuntimeError, OSError, ValueError, LookupError) as error:
        damage = one_line(error)
    raise BenchError(f"{info.name}: {damage}: {remedy}")
