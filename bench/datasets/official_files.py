"""The official files of a data set, through torchvision's classes."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from bench.datasets.dataset import Arrays, Dataset
from bench.system.errors import BenchError
from bench.system.files import file_mode


def official_class(info: Dataset, test: bool = True) -> Any:
    """Return torchvision's class for the labelled files, None for a data set without files.

    Without `test` it knows no test files.
    """
    if not info.torchvision_class:
        return None
    import torchvision

    base = getattr(torchvision.datasets, info.torchvision_class)
    lists = {"train_list": base.train_list[: info.labelled_files]}
    if not test:
        lists["test_list"] = []
    return type(base.__name__, (base,), lists)


def file_hashes(official: Any) -> dict[str, str]:
    """Return the md5 of each official file that is needed, by file name."""
    hashes = dict([*official.train_list, *official.test_list])
    if hasattr(official, "meta"):
        hashes[official.meta["filename"]] = official.meta["md5"]
    return hashes


def damage_in(folder: Path, official: Any) -> str:
    """Describe the first official file that is missing or damaged; "" if none is."""
    from torchvision.datasets.utils import check_integrity

    for file, md5 in file_hashes(official).items():
        path = folder / file
        if not path.is_file():
            return f"{file} is missing from {str(folder)!r}"
        if not check_integrity(path, md5):
            size = f"{path.stat().st_size:,} bytes"
            return f"{str(path)!r} is damaged or cut short ({size}, not the official md5)"
    return ""


def read_halves(info: Dataset, root: Path, test: bool = True) -> list[Arrays]:
    """Read the training half and, with `test`, the test half.

    torchvision checks every file before it reads one. Raise BenchError for missing or damaged ones.
    """
    halves = [True]
    if test:
        halves.append(False)
    official = official_class(info, test)
    if official is None:
        return [info.read(None, root, train) for train in halves]
    folder = root / official.base_folder
    remedy = f"run `python -m bench data fetch {info.name}`"
    if not stat.S_ISDIR(file_mode(folder)):
        raise BenchError(
            f"{info.name} is not under {str(root)!r}: {remedy},"
            f" or put the official folder {official.base_folder} there"
        )
    try:
        return [info.read(official, root, train) for train in halves]
    except (RuntimeError, OSError, ValueError) as error:
        message = damage_in(folder, official) or first_line(error)
        raise BenchError(f"{info.name}: {message}: {remedy}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]
