"""A data set as its fixed splits.

Splits never depend on a limit or on the run's seed: numpy's `RandomState`, whose stream numpy
promises not to change, draws test of digits with seed 0, validation with 1, training order with 2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.datasets import get
from bench.datasets.files.official_files import read_half
from bench.datasets.splits import Data, split_digest, to_split, validation_rows
from bench.system.errors import UsageError


def load_data(
    name: str,
    root: str | Path,
    limit_train: int | None = None,
    limit_test: int | None = None,
    limit_val: int | None = None,
    *,
    test: bool = True,
) -> Data:
    """Load a data set from the folder `root`, on the CPU; a limit keeps a split's first images.

    Without `test` the test images are not read, and that split is empty. Raise UsageError for an
    unknown name or a limit out of range, BenchError for missing or damaged files.
    """
    info = get(name)
    pool = to_split(read_half(info, Path(root), train=True))
    val_rows = validation_rows(info, pool.y.numpy())
    rest = np.setdiff1d(np.arange(len(pool)), val_rows)
    val_rows = val_rows[: checked_limit("validation", limit_val, len(val_rows))]
    train_size = checked_limit("train", limit_train, len(rest))
    train_rows = np.random.RandomState(2).permutation(rest)[:train_size]
    train, val, held_out = pool.select(train_rows), pool.select(val_rows), pool.select(slice(0))
    if test:
        held_out = to_split(read_half(info, Path(root), train=False))
        held_out = held_out.select(slice(checked_limit("test", limit_test, len(held_out))))
    return Data(info, train, val, held_out, split_digest(val_rows, train, val, held_out))


def split_sizes(name: str, limit_train: int | None, limit_test: int | None) -> tuple[int, int]:
    """Return the numbers of training and test images that `load_data` gives, without the files.

    Raise UsageError for an unknown name or a limit out of range.
    """
    info = get(name)
    num_train = checked_limit("train", limit_train, info.num_train)
    return num_train, checked_limit("test", limit_test, info.num_test)


def checked_limit(split: str, limit: int | None, size: int) -> int:
    """Return the number of images to keep of a split. Raise UsageError for a limit out of range."""
    if limit is None:
        return size
    if not 1 <= limit <= size:
        message = f"a {split} limit of {limit:,} is out of range"
        raise UsageError(f"{message}: the {split} set has {size:,} images")
    return limit
