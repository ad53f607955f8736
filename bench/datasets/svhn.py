"""SVHN, the cropped digits."""

from __future__ import annotations

from pathlib import Path

from bench.datasets.dataset import Arrays, Dataset, Download, OfficialFiles


class Svhn(Dataset):
    """Street View House Numbers: two files of Matlab, read by torchvision."""

    num_test = 26_032
    sizes = (182_040_794, 64_275_384)

    @property
    def source(self) -> str:
        return f"{super().source}, through torchvision.datasets.SVHN"

    def files(self) -> OfficialFiles:
        from torchvision.datasets import SVHN

        downloads = []
        for half, size in zip(("train", "test"), self.sizes, strict=True):
            url, _, md5 = SVHN.split_list[half]
            downloads.append(Download((url, url.replace("http:", "https:")), md5, size))
        train, test = ({file.name: file.md5} for file in downloads)
        return OfficialFiles("svhn", train, test, tuple(downloads))

    def read(self, folder: Path, train: bool) -> Arrays:
        from torchvision.datasets import SVHN

        half = SVHN(folder, split="train" if train else "test")
        return half.data, half.labels


DATASET = Svhn(
    name="svhn",
    num_classes=10,
    shape=(3, 32, 32),
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    pad=4,
    # A mirrored digit is another sign.
    flip=False,
    num_train=66_000,
    num_val=7_257,
    about="SVHN, cropped digits: 66,000 train, 7,257 validation, 26,032 test",
)
