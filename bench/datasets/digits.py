"""scikit-learn's scanned digits."""

from __future__ import annotations

from pathlib import Path

from bench.datasets.dataset import Arrays, Dataset

NUM_TEST = 360


class Digits(Dataset):
    """Images that come with scikit-learn, whose values are 0 to 16."""

    num_test = NUM_TEST

    @property
    def source(self) -> str:
        return "scikit-learn, which brings it"

    def read(self, folder: Path, train: bool) -> Arrays:
        import numpy as np
        from sklearn.datasets import load_digits

        from bench.datasets.splits import stratified_positions

        images, labels = load_digits(return_X_y=True)
        x = np.rint(images * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
        positions = stratified_positions(labels, NUM_TEST, seed=0)
        if train:
            positions = np.setdiff1d(np.arange(len(labels)), positions)
        return x[positions], labels[positions]


DATASET = Digits(
    name="digits",
    num_classes=10,
    shape=(1, 8, 8),
    mean=(0.305,),
    std=(0.376,),
    # The scans are centred: a shift by one of eight pixels is a harder task, not more data.
    pad=0,
    # A mirrored digit is another sign.
    flip=False,
    num_train=1_257,
    num_val=180,
    about="scikit-learn's 1,797 scanned digits: 1,257 train, 180 validation, 360 test;"
    " nothing to download",
)
