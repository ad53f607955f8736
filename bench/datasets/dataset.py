"""The facts of a data set. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

# Images (N, C, H, W) in 0 to 255, and labels (N,), as arrays of numpy or lists.
Arrays = tuple[Any, Any]


@dataclass(frozen=True)
class Dataset:
    """One data set. Its fields are facts that a record states; a subclass knows how it is read.

    shape: (C, H, W). mean, std: per channel, for pixels in [0, 1]; they go inside the networks.
    pad, flip: training images are zero-padded by `pad` pixels, cropped back and mirrored if `flip`.
    num_val images leave the official training set for validation, num_train stay.
    """

    # The class that knows the official files, and how many of its `train_list` are labelled.
    torchvision_class: ClassVar[str] = ""
    labelled_files: ClassVar[int | None] = None
    # Bytes of the official archive.
    download_bytes: ClassVar[int] = 0
    # Of the official test set. No field: a record states what was evaluated.
    num_test: ClassVar[int]

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

    def read(self, official: Any, root: Path, train: bool) -> Arrays:
        """Read the training half or the test half through `official`, a class of torchvision."""
        raise NotImplementedError
