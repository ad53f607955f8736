"""Images as uint8 tensors: loading, the fixed splits, getting the official files, augmentation on the device.

Splits never depend on a limit or on the run's seed. They are drawn with numpy's `RandomState`, whose stream numpy
promises not to change: test of digits with seed 0, validation with seed 1, training order with seed 2.
"""

from __future__ import annotations

import hashlib
import http.client
import lzma
import shutil
import socket
import tarfile
import tempfile
import urllib.error
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import datasets
from bench.datasets import Dataset
from bench.system.errors import BenchError, UsageError

TIMEOUT = 10.0  # seconds without a byte before a download counts as failed
OFFLINE = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    RuntimeError,
)


@dataclass(frozen=True)
class Split:
    """x: (N, C, H, W) uint8; y: (N,) int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Data:
    """The three splits as used, and the sha256 that identifies them."""

    info: Dataset
    train: Split
    val: Split
    test: Split
    sha256: str

    def to(self, device: torch.device | str) -> Data:
        return Data(
            self.info, self.train.to(device), self.val.to(device), self.test.to(device), self.sha256
        )


def load(
    name: str,
    root: str | Path,
    limit_train: int | None = None,
    limit_test: int | None = None,
    limit_val: int | None = None,
    *,
    test: bool = True,
) -> Data:
    """The data set `name` from the folder `root`, on the CPU; limits keep the first so many images of a split.

    Without `test` the test images are not read at all, and that split is empty. Raises UsageError for an unknown name
    or a limit out of range, BenchError for missing or damaged files.
    """
    info = datasets.get(name)
    pool, held = scans() if name == "digits" else official(name, Path(root), test)
    chosen = stratified(pool.y.numpy(), info.num_val, seed=1)
    rest = np.setdiff1d(np.arange(len(pool)), chosen)
    chosen = chosen[: limit("validation", limit_val, len(chosen))]
    order = np.random.RandomState(2).permutation(rest)[: limit("train", limit_train, len(rest))]
    end = limit("test", limit_test, len(held)) if test else 0
    splits = (
        Split(pool.x[order], pool.y[order]),
        Split(pool.x[chosen], pool.y[chosen]),
        Split(held.x[:end], held.y[:end]),
    )
    return Data(info, *splits, sha256=digest(chosen, *splits))


def limit(which: str, given: int | None, size: int) -> int:
    if given is not None and not 1 <= given <= size:
        raise UsageError(
            f"a {which} limit of {given:,} is out of range: the {which} set has {size:,} images"
        )
    return size if given is None else given


def stratified(y: np.ndarray[Any, Any], n: int, seed: int) -> np.ndarray[Any, Any]:
    """`n` sorted positions whose classes are in the proportions of `y`."""
    order = np.random.RandomState(seed).permutation(len(y))
    quantile = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(quantile[order], kind="stable")[:n]])


def digest(chosen: np.ndarray[Any, Any], *splits: Split) -> str:
    """sha256 over the validation positions and each split's shape, pixels and labels."""
    sha = hashlib.sha256(chosen.astype("<i8").tobytes())
    for split in splits:
        sha.update(str(tuple(split.x.shape)).encode())
        sha.update(split.x.contiguous().numpy().data)
        sha.update(split.y.numpy().astype("<i8").tobytes())
    return sha.hexdigest()


def scans() -> tuple[Split, Split]:
    """scikit-learn's digits (values 0 to 16) as training pool and test set."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(np.rint(images * 255 / 16).astype(np.uint8)).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    chosen = stratified(labels, 360, seed=0)
    rest = np.setdiff1d(np.arange(len(y)), chosen)
    return Split(x[rest], y[rest]), Split(x[chosen], y[chosen])


def source(name: str, test: bool = True) -> Any:
    """torchvision's class, made to do without STL-10's 2.5 GB of unlabelled images and, unless `test`, the test set."""
    from torchvision import datasets as vision

    cls = {"cifar10": vision.CIFAR10, "cifar100": vision.CIFAR100, "stl10": vision.STL10}[name]
    changed = {"train_list": cls.train_list[:2]} if name == "stl10" else {}
    return type(cls.__name__, (cls,), changed | ({} if test else {"test_list": []}))


def manifest(cls: Any) -> dict[str, str]:
    """The md5 of each official file that is needed, by file name."""
    meta = [(cls.meta["filename"], cls.meta["md5"])] if hasattr(cls, "meta") else []
    return dict([*cls.train_list, *cls.test_list, *meta])


def fault(cls: Any, folder: Path) -> str | None:
    """What is wrong with the first official file that is missing or damaged in `folder`; None if all is well."""
    from torchvision.datasets.utils import check_integrity

    for file, md5 in manifest(cls).items():
        path = folder / file
        if not path.is_file():
            return f"{file} is missing from {str(folder)!r}"
        if not check_integrity(path, md5):
            return f"{str(path)!r} is damaged or cut short ({path.stat().st_size:,} bytes, not the official md5)"
    return None


def official(name: str, root: Path, test: bool = True) -> tuple[Split, Split]:
    """Training pool and test set (empty without `test`) through torchvision, which checks every file before it reads one."""
    cls = source(name, test)
    folder, remedy = root / cls.base_folder, f"run `python -m bench data fetch {name}`"
    if not folder.is_dir():
        raise BenchError(
            f"{name} is not under {str(root)!r}: {remedy}, or put the official folder {cls.base_folder} there"
        )
    try:
        halves = [
            cls(root, **{"split": part} if name == "stl10" else {"train": part == "train"})
            for part in (("train", "test") if test else ("train",))
        ]
    except (RuntimeError, OSError, ValueError) as error:
        raise BenchError(f"{name}: {fault(cls, folder) or one_line(error)}: {remedy}") from error
    pool, *held = map(pack, halves)
    return pool, held[0] if test else Split(pool.x[:0], pool.y[:0])


def pack(half: Any) -> Split:
    labels = half.labels if hasattr(half, "labels") else half.targets
    images = (
        half.data if hasattr(half, "labels") else half.data.transpose(0, 3, 1, 2)
    )  # torchvision's CIFAR is HWC
    y = torch.from_numpy(np.asarray(labels).astype(np.int64))
    return Split(torch.from_numpy(np.ascontiguousarray(images)), y)


def verify(name: str, root: str | Path) -> str:
    """One line with counts and sha256; raises BenchError as `load` does."""
    data = load(name, root)
    counts = f"{len(data.train):,} train, {len(data.val):,} validation, {len(data.test):,} test"
    return f"{name}: {counts}, {'x'.join(map(str, data.info.shape))}, sha256 {data.sha256}"


def missing(name: str, root: str | Path) -> bool:
    """Whether the folder of the official files is not there at all."""
    return name != "digits" and not (Path(root) / source(name).base_folder).is_dir()


def fetch(name: str, root: str | Path) -> str:
    """Downloads the official files that are missing, then verifies; returns `verify`'s line.

    Raises BenchError that says what to put where when the network does not answer.
    """
    info, root = datasets.get(name), Path(root)
    if name != "digits" and fault(source(name), root / source(name).base_folder):
        cls = source(name)
        files = ", ".join(manifest(cls))
        try:
            root.mkdir(parents=True, exist_ok=True)
            with quick():
                cls(root, download=True)
        except OFFLINE as error:
            raise BenchError(
                f"{info.name} cannot be downloaded ({one_line(error)}): put the folder {cls.base_folder} ({files}) into "
                f"{str(root)!r}, or run `python -m bench data import {name} FILE_OR_FOLDER`"
            ) from error
        except OSError as error:
            raise BenchError(
                f"cannot write to {str(root)!r}: {error.strerror or one_line(error)}"
            ) from error
    return verify(name, root)


def import_data(name: str, given: str | Path, root: str | Path) -> str:
    """Copies the official files of a folder or tar archive under `root`, then verifies; returns `verify`'s line.

    Nothing is copied unless every file has its official md5. Raises BenchError otherwise.
    """
    datasets.get(name)
    if name == "digits":
        raise UsageError("digits comes with scikit-learn: there is nothing to import")
    cls, given, target = source(name), Path(given), Path(root) / source(name).base_folder
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpacked(given, Path(scratch))
        found = {
            file: next((path for path in folder.rglob(file) if path.is_file()), folder / file)
            for file in manifest(cls)
        }
        places = {path.parent for path in found.values()}
        if wrong := fault(cls, places.pop() if len(places) == 1 else folder):
            raise BenchError(f"{str(given)!r} does not hold the official {name}: {wrong}")
        try:
            target.mkdir(parents=True, exist_ok=True)
            for file, path in found.items():
                shutil.copyfile(path, target / f"{file}.part")
                (target / f"{file}.part").replace(target / file)
        except OSError as error:
            raise BenchError(f"cannot write to {str(target)!r}: {error.strerror}") from error
    return verify(name, root)


def unpacked(given: Path, scratch: Path) -> Path:
    """The folder given, or the plain files of the archive given, copied into `scratch`; links are left out.

    Not `extractall`: its safe filter came with Python 3.11.4.
    """
    if given.is_dir():
        return given
    try:
        with tarfile.open(given) as archive:
            for member in archive:
                if content := archive.extractfile(member) if member.isfile() else None:
                    inside = [
                        part for part in PurePosixPath(member.name).parts if part not in ("/", "..")
                    ]
                    target = scratch.joinpath(*inside)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as out:
                        shutil.copyfileobj(content, out)
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise BenchError(
            f"{str(given)!r} is neither a folder nor a readable tar archive: {one_line(error)}"
        ) from error
    return scratch


@contextmanager
def quick() -> Iterator[None]:
    """Bounds how long a silent server is waited for."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def to_float(x: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in [0, 1]."""
    return x.float() / 255


def augment(x: Tensor, pad: int, flip: bool) -> Tensor:
    """Crops each image of (B, C, H, W) at its own place after zero padding, and mirrors each with probability 1/2."""
    b, c, h, w = x.shape
    top, left = torch.randint(0, 2 * pad + 1, (2, b, 1), device=x.device)
    rows = top + torch.arange(h, device=x.device)
    columns = left + torch.arange(w, device=x.device)
    if flip:
        mirrored = torch.rand(b, 1, device=x.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(b, device=x.device)[:, None, None, None]
    channel = torch.arange(c, device=x.device)[None, :, None, None]
    return F.pad(x, (pad,) * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
