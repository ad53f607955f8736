"""A data set from files of another form, accepted by the sha256 of its pixels and labels.

Hugging Face's parquet and folders of PNG hold the official pixels. `import` writes them to one file
of numpy, which is checked again whenever it is read.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from bench.datasets.dataset import Arrays, Dataset
from bench.datasets.files.images import SUFFIXES, decode
from bench.system.errors import BenchError, one_line
from bench.system.files import save_file

HALVES = {True: "train", False: "test"}


def pixel_file(info: Dataset, folder: Path) -> Path:
    """Return where the pixels of a data set lie that came in another form."""
    return folder / f"{info.name}.npz"


def read_pixels(info: Dataset, folder: Path, train: bool) -> Arrays:
    """Read a half from the pixel file. Raise BenchError if it is not the official one."""
    path, half = pixel_file(info, folder), HALVES[train]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = file[f"{half}_x"], file[f"{half}_y"]
    except (OSError, ValueError, LookupError, EOFError, BadZipFile) as error:
        raise BenchError(f"{str(path)!r} cannot be read ({type(error).__name__})") from error
    if pixel_digest(arrays) != info.pixels_sha256.get(half):
        raise BenchError(f"{str(path)!r} has other pixels or labels than the official {half} half")
    return arrays


def pixel_digest(arrays: Arrays) -> str:
    """Hash images (N, C, H, W) of uint8 and labels (N,) with sha256."""
    x, y = arrays
    sha = hashlib.sha256(np.ascontiguousarray(x, np.uint8).data)
    sha.update(np.asarray(y, "<i8").tobytes())
    return sha.hexdigest()


def import_pixels(info: Dataset, source: Path, folder: Path) -> None:
    """Write the pixel file from a folder of parquet or of images.

    Raise BenchError, and write nothing, unless both halves are the official ones.
    """
    arrays: dict[str, Any] = {}
    for half, expected in info.pixels_sha256.items():
        x, y = read_form(info, source, half)
        if pixel_digest((x, y)) != expected:
            raise BenchError(
                f"{len(x):,} {half} images in {str(source)!r} are not those of {info.name},"
                " or not in their order"
            )
        arrays |= {f"{half}_x": x, f"{half}_y": y}
    content = io.BytesIO()
    np.savez(content, **arrays)
    save_file(pixel_file(info, folder), content.getvalue())


def read_form(info: Dataset, source: Path, half: str) -> Arrays:
    """Read a half from files whose path below `source` names it. Raise BenchError without any."""
    paths = []
    for path in source.rglob("*"):
        inside = path.relative_to(source).as_posix()
        if re.search(half, inside, re.IGNORECASE) and path.is_file():
            paths.append(path)
    parquet = sorted(path for path in paths if path.suffix == ".parquet")
    images = [path for path in paths if path.suffix.lower() in SUFFIXES]
    try:
        if parquet:
            return read_parquet(parquet, info)
        if images:
            return read_numbered(images, info)
    # pandas reads parquet by pyarrow, which MLflow brings and a smaller install lacks.
    except (ImportError, OSError, ValueError, LookupError, StopIteration) as error:
        raise BenchError(f"{str(source)!r}: {type(error).__name__}: {one_line(error)}") from error
    raise BenchError(f"{str(source)!r} has no official file, Parquet or image of the {half} half")


def read_parquet(paths: Iterable[Path], info: Dataset) -> Arrays:
    """Read Hugging Face's form: a column of encoded images and one of labels."""
    import pandas as pd

    table = pd.concat([pd.read_parquet(path) for path in paths])
    labels = next(name for name in ("fine_label", "label") if name in table)
    images = next(name for name in ("img", "image") if name in table)
    contents = ((f"image {row}", image["bytes"]) for row, image in enumerate(table[images]))
    return decode(contents, info.shape), table[labels].to_numpy()


def read_numbered(paths: list[Path], info: Dataset) -> Arrays:
    """Read images in the order of the number that begins their names.

    The class is what follows the number, "0_frog.png", or else the folder.
    """
    numbered: list[tuple[int, str, Path]] = []
    for path in paths:
        match = re.match(r"(\d+)_?(.*)", path.stem)
        if match:
            numbered.append((int(match[1]), match[2] or path.parent.name, path))
    numbered.sort()
    classes = sorted({name for _, name, _ in numbered})
    contents = ((str(path), path.read_bytes()) for *_, path in numbered)
    labels = [classes.index(name) for _, name, _ in numbered]
    return decode(contents, info.shape), np.array(labels)
