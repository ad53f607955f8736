"""Bars in four directions: images that are made, so there is nothing to download."""

from __future__ import annotations

from pathlib import Path

from bench.datasets.dataset import Arrays, Dataset


class Bars(Dataset):
    """Bars through the centre of noisy 8x8 images: flat, upright, falling and rising."""

    num_test = 100

    @property
    def source(self) -> str:
        return "bench-example, which makes it"

    def read(self, folder: Path, train: bool) -> Arrays:
        import numpy as np

        random = np.random.default_rng(int(train))
        y = np.arange(500 if train else 100) % 4
        bars = np.zeros((4, 8, 8), np.uint8)
        bars[0, 3:5], bars[1, :, 3:5], bars[2], bars[3] = 1, 1, np.eye(8), np.eye(8)[::-1]
        x = 150 * bars[y] + random.integers(0, 100, (len(y), 8, 8), np.uint8)
        return x[:, None], y


DATASET = Bars(
    name="bars",
    num_classes=4,
    shape=(1, 8, 8),
    mean=(0.306,),
    std=(0.256,),
    pad=0,
    flip=False,
    num_train=400,
    num_val=100,
    about="bars: 400 train, 100 validation, 100 test; nothing to download",
)
