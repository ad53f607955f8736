"""Data sets whose official files torchvision knows: addresses, md5 and format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from bench.datasets.dataset import Arrays, Dataset, Download, OfficialFiles


class TorchvisionDataset(Dataset):
    """A data set in an archive, read by a class of torchvision that has lists of its files."""

    torchvision_class: ClassVar[str]
    # How many files of its `train_list` are labelled.
    labelled_files: ClassVar[int | None] = None
    # Bytes of the archive, and further addresses of it.
    archive_bytes: ClassVar[int]
    mirrors: ClassVar[tuple[str, ...]] = ()

    @property
    def source(self) -> str:
        """The class of torchvision that reads the files."""
        return f"{super().source}, through torchvision.datasets.{self.torchvision_class}"

    def files(self) -> OfficialFiles:
        """Return the files that torchvision lists."""
        official = self._class()
        meta = {}
        if hasattr(official, "meta"):
            meta[official.meta["filename"]] = official.meta["md5"]
        train, test = dict(official.train_list) | meta, dict(official.test_list) | meta
        archive = Download((official.url, *self.mirrors), official.tgz_md5, self.archive_bytes)
        return OfficialFiles(official.base_folder, train, test, (archive,))

    def read(self, folder: Path, train: bool) -> Arrays:
        """Read a half through torchvision, which looks at no file of the other half."""
        official = self._class()
        setattr(official, "test_list" if train else "train_list", [])
        return self.read_half(official, folder.parent, train)

    def read_half(self, official: Any, root: Path, train: bool) -> Arrays:
        """Return images (N, C, H, W) and labels of `official`, the class of torchvision."""
        raise NotImplementedError

    def _class(self) -> Any:
        """Return a copy of torchvision's class without the files that have no labels."""
        import torchvision

        base = getattr(torchvision.datasets, self.torchvision_class)
        return type(base.__name__, (base,), {"train_list": base.train_list[: self.labelled_files]})
