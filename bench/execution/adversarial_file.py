"""A file of adversarial examples that were made elsewhere, read without running code from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.models.reader import is_plain, read_content
from bench.system.errors import BenchError, UsageError
from bench.system.files import check_regular

NUMPY = (".npy", ".npz")


def read_examples(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Return the images of a file, each of `shape`, as floats.

    Raise BenchError for a file that cannot be read, UsageError for one that holds something else.
    """
    if not path.exists():
        raise BenchError(f"there is no file {str(path)!r}")
    check_regular(path)
    content = read_numpy(path) if path.suffix in NUMPY else read_content(path)
    images = only_images(path, content)
    if isinstance(images, np.ndarray) and images.dtype.kind == "f":
        images = torch.from_numpy(images.astype(np.float32))
    if not (isinstance(images, Tensor) and images.is_floating_point()):
        dtype = str(images.dtype).removeprefix("torch.")
        remedy = "save what the attack made, before it is rounded to whole numbers"
        raise UsageError(f"{str(path)!r} holds images of {dtype}, not floats in [0, 1]: {remedy}")
    if not is_plain(images):
        raise UsageError(f"{str(path)!r} holds something else than a plain tensor")
    if images.shape[1:] != shape:
        wanted = ", ".join(map(str, ("N", *shape)))
        is_channels_last = images.shape[1:] == (*shape[1:], shape[0])
        remedy = ": images.transpose(0, 3, 1, 2) in NumPy" if is_channels_last else ""
        raise UsageError(f"{str(path)!r} holds {tuple(images.shape)}, not ({wanted}){remedy}")
    return images.detach()


def read_numpy(path: Path) -> Any:
    """Return the array of an .npy file, or the arrays of an .npz by their names."""
    try:
        content = np.load(path, allow_pickle=False)
        return content if isinstance(content, np.ndarray) else dict(content)
    # Damaged files fail in more ways than can be named.
    except Exception as error:
        raise BenchError(f"{str(path)!r} is no file of plain NumPy arrays, or damaged") from error


def only_images(path: Path, content: Any) -> Any:
    """Return the only value with four dimensions. Raise UsageError for none or several."""
    values = content if isinstance(content, Mapping) else {"": content}
    images = {name: value for name, value in values.items() if getattr(value, "ndim", 0) == 4}
    if not images:
        raise UsageError(f"{str(path)!r} holds no tensor or array of images (N, C, H, W)")
    if len(images) > 1:
        names = ", ".join(map(str, images))
        raise UsageError(f"{str(path)!r} holds several sets of images, {names}: save one of them")
    return next(iter(images.values()))
