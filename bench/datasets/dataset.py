"""The facts of a data set. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Images (N, C, H, W) in 0 to 255, and labels (N,), as arrays of numpy or lists.
Arrays = tuple[Any, Any]


@dataclass(frozen=True)
class Dataset:
    """One data set.

    shape: (C, H, W). mean, std: per channel, for pixels in [0, 1]; they go inside the networks.
    pad, flip: training images are zero-padded by `pad` pixels, cropped back and mirrored if `flip`.
    num_val images leave the official training set for validation, num_train stay.
    read: the training half (True) or the test half of the official data. Its first argument is
    torchvision's class, None if there are no official files.
    torchvision_class: name of the class that knows the official files; "" without files.
    labelled_files: entries of its `train_list` that hold labelled images; None means all.
    """

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
    read: Callable[[Any, Path, bool], Arrays]
    torchvision_class: str = ""
    labelled_files: int | None = None
