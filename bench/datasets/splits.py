"""Splits of a data set as uint8 tensors, how they are drawn, and the hash that identifies them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.datasets.dataset import Arrays, Dataset

Integers = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Split:
    """x: (N, C, H, W) uint8; y: (N,) int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.x.to(device), self.y.to(device))

    def select(self, rows: Integers | slice) -> Split:
        return Split(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Data:
    """The three splits as used, and the sha256 that identifies them."""

    info: Dataset
    train: Split
    val: Split
    test: Split
    sha256: str

    def to(self, device: torch.device | str) -> Data:
        train, val, test = self.train.to(device), self.val.to(device), self.test.to(device)
        return Data(self.info, train, val, test, self.sha256)


def to_split(arrays: Arrays) -> Split:
    """Copy images (N, C, H, W) and labels (N,) into tensors."""
    images, labels = arrays
    y = torch.from_numpy(np.asarray(labels).astype(np.int64))
    return Split(torch.from_numpy(np.ascontiguousarray(images)), y)


def stratified_positions(y: Integers, count: int, seed: int) -> Integers:
    """Draw `count` sorted positions whose classes are in the proportions of `y`."""
    order = np.random.RandomState(seed).permutation(len(y))
    quantile = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(quantile[order], kind="stable")[:count]])


def validation_rows(info: Dataset, y: Integers) -> Integers:
    """Return which images of the training half, with labels y: (N,), are for validation."""
    rows: Integers | None = info.validation_positions(len(y))
    return stratified_positions(y, info.num_val, seed=1) if rows is None else rows


def split_digest(val_positions: Integers, *splits: Split) -> str:
    """Hash the validation positions and each split's shape, pixels and labels with sha256."""
    sha = hashlib.sha256(val_positions.astype("<i8").tobytes())
    for split in splits:
        sha.update(str(tuple(split.x.shape)).encode())
        sha.update(split.x.contiguous().numpy().data)
        sha.update(split.y.numpy().astype("<i8").tobytes())
    return sha.hexdigest()
