"""Splits and their hash, small files in the official formats, fetching, importing, augmentation."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import os
import pickle
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import datasets as vision

from bench.datasets import (
    DATASETS,
    DIGITS,
    augmentation,
    splits,
    tiny_imagenet,
)
from bench.datasets.augmentation import augment
from bench.datasets.dataset import Download
from bench.datasets.files import fetching, official_files
from bench.datasets.files.download import DownloadError
from bench.datasets.loading import load_data
from bench.datasets.splits import Data
from bench.system.errors import BenchError, UsageError

# sha256 of the loaded data, scikit-learn's digits (1.9.1) and the official CIFAR-10, under this
# project's fixed splits. A change is a change of protocol and needs a new version of the suites.
DIGITS_SHA256 = "92f2d6eabb949377daec8f3555e5cc1ee060ac0530a792c85b79f8463b5946f2"
CIFAR10_SHA256 = "7f9e470e40257763786df980ec906ce692099c914e8e2ade278558098e77c050"
ROOT = Path(os.environ.get("BENCH_DATA_ROOT", Path(__file__).parent.parent / "data"))


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", "")


@pytest.fixture(scope="module")
def cifar10() -> Data:
    if not (ROOT / "cifar-10-batches-py").is_dir():
        pytest.skip(f"the official CIFAR-10 (cifar-10-batches-py) is not under {ROOT}")
    return load_data("cifar10", ROOT)


def count_labelled_images(x: Tensor, y: Tensor) -> Counter[tuple[bytes, int]]:
    """Count every image with its label."""
    return Counter((image.numpy().tobytes(), int(label)) for image, label in zip(x, y, strict=True))


def assert_one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# Digits and the splits


def test_digits_splits_are_disjoint_and_complete(digits: Data) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.rint(images * 255 / 16).astype(np.uint8))
    everything = count_labelled_images(pixels.view(-1, 1, 8, 8), torch.tensor(labels))
    splits = (digits.train, digits.val, digits.test)
    assert [len(split) for split in splits] == [1257, 180, 360]
    parts = [count_labelled_images(split.x, split.y) for split in splits]
    assert sum(parts, Counter()) == everything
    assert sum(everything.values()) == 1797
    assert digits.train.x.dtype == torch.uint8
    assert digits.train.y.dtype == torch.int64
    assert digits.train.x.amax() == 255


def test_digits_splits_are_stratified(digits: Data) -> None:
    everything = torch.cat([digits.train.y, digits.val.y, digits.test.y]).bincount() / 1797
    for split in digits.train, digits.val, digits.test:
        assert (split.y.bincount() - everything * len(split)).abs().max() <= 1.5


def test_digits_hash_is_golden(digits: Data) -> None:
    assert digits.sha256 == DIGITS_SHA256
    assert load_data("digits", "anywhere").sha256 == DIGITS_SHA256
    assert DIGITS_SHA256 in fetching.verify_data("digits", "")
    assert "1,257 train, 180 validation, 360 test, 1x8x8" in fetching.verify_data("digits", "")


@pytest.mark.parametrize(
    ("which", "count"), [("train", 100), ("train", 1257), ("val", 30), ("test", 1), ("test", 96)]
)
def test_a_limit_keeps_the_first_images_of_one_split(digits: Data, which: str, count: int) -> None:
    limited = load_data("digits", "", **{f"limit_{which}": count})
    for name in ("train", "val", "test"):
        split, complete = getattr(limited, name), getattr(digits, name)
        end = count if name == which else len(complete)
        assert len(split) == end
        assert torch.equal(split.x, complete.x[:end])
        assert torch.equal(split.y, complete.y[:end])
    assert (limited.sha256 == digits.sha256) == (count == len(getattr(digits, which)))


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        ({"limit_train": 1258}, "1,257"),
        ({"limit_train": 0}, "1,257"),
        ({"limit_train": -5}, "1,257"),
        ({"limit_val": 181}, "180"),
        ({"limit_test": 361}, "360"),
    ],
)
def test_a_limit_out_of_range_is_refused(limit: dict[str, int], size: str) -> None:
    (value,) = limit.values()
    with pytest.raises(UsageError, match=rf"{value:,} is out of range.*{size} images") as caught:
        load_data("digits", "", **limit)
    assert assert_one_line(caught.value)


@pytest.mark.parametrize(
    "y", [[0] * 50 + [1] * 30 + [2] * 20, [0, 1] * 40, list(range(7)) * 9, [3] * 12]
)
@pytest.mark.parametrize("n", [1, 7, 10])
def test_stratified_positions_are_proportional_sorted_and_seeded(y: list[int], n: int) -> None:
    labels = np.array(y)
    chosen = splits.stratified_positions(labels, n, seed=1)
    assert len(set(chosen.tolist())) == n
    assert chosen.tolist() == sorted(chosen.tolist())
    for label, size in Counter(y).items():
        assert abs((labels[chosen] == label).sum() - n * size / len(y)) < 1
    assert chosen.tolist() == splits.stratified_positions(labels, n, seed=1).tolist()
    assert len({tuple(splits.stratified_positions(labels, n, seed=seed)) for seed in range(5)}) > 1


CALLS: list[Callable[[str], Any]] = [
    lambda name: load_data(name, ""),
    lambda name: fetching.verify_data(name, ""),
    lambda name: fetching.fetch_data(name, ""),
    lambda name: fetching.import_data(name, "", ""),
]


@pytest.mark.parametrize("call", CALLS, ids=["load", "verify", "fetch", "import"])
@pytest.mark.parametrize(
    ("name", "nearest"), [("cifr10", "cifar10"), ("stl-10", "stl10"), ("digit", "digits")]
)
def test_an_unknown_name_gets_the_nearest_name(
    call: Callable[[str], Any], name: str, nearest: str
) -> None:
    with pytest.raises(UsageError, match=f"unknown dataset '{name}'.*{nearest}") as caught:
        call(name)
    assert assert_one_line(caught.value)


# The official CIFAR-10


def test_cifar10_has_the_official_files_and_sizes(cifar10: Data) -> None:
    assert official_files.damage_of(cifar10.info, ROOT) == ""
    assert [len(split) for split in (cifar10.train, cifar10.val, cifar10.test)] == [
        45_000,
        5_000,
        10_000,
    ]
    assert cifar10.train.x.shape[1:] == cifar10.info.shape


def test_cifar10_is_balanced_and_its_hash_golden(cifar10: Data) -> None:
    for split, per_class in ((cifar10.train, 4500), (cifar10.val, 500), (cifar10.test, 1000)):
        assert split.y.bincount().tolist() == [per_class] * 10
    assert cifar10.sha256 == CIFAR10_SHA256


def test_cifar10_normalisation_fits_its_pixels(cifar10: Data) -> None:
    sample = augmentation.to_float(cifar10.train.x[:10_000])
    assert sample.mean(dim=(0, 2, 3)).tolist() == pytest.approx(cifar10.info.mean, abs=0.005)
    assert sample.std(dim=(0, 2, 3)).tolist() == pytest.approx(cifar10.info.std, abs=0.005)


# The official formats in small


@dataclass(frozen=True)
class Toy:
    """Few images in official files, and the same as x (N, C, H, W) and y, test images last."""

    name: str
    files: dict[str, bytes]
    x: Tensor
    y: Tensor
    num_test: int

    @property
    def folder(self) -> str:
        """The official folder."""
        files = DATASETS[self.name].files()
        assert files
        return files.folder

    def write_files(self, root: Path, without: str = "") -> Path:
        """Write the files into their official folder under `root`."""
        folder = root / self.folder
        folder.mkdir(parents=True)
        for file, content in self.files.items():
            if file != without:
                (folder / file).write_bytes(content)
        return folder

    def write_archive(self, file: Path, inside: str, **changed: bytes) -> Path:
        """Write a tar archive of the files in the folder `inside`; `changed` replaces contents."""
        with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as archive:
            for name, content in (self.files | changed).items():
                add_entry(archive, f"{inside}{name}", content)
        return file


def add_entry(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def random_images(n: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def cifar_files(
    official: Any, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], sizes: list[int]
) -> dict[str, bytes]:
    """Pickled dictionaries: each row one image, the red plane first, rows from the top."""
    files = {}
    bounds = np.cumsum([0, *sizes])
    for (file, _), start, end in zip(
        [*official.train_list, *official.test_list], bounds, bounds[1:], strict=False
    ):
        rows, labels = x[start:end].reshape(end - start, -1), y[start:end].tolist()
        if official is vision.CIFAR100:
            entry = {
                "data": rows,
                "fine_labels": labels,
                "coarse_labels": [label // 5 for label in labels],
            }
        else:
            entry = {"data": rows, "labels": labels, "batch_label": file}
        files[file] = pickle.dumps(entry, protocol=2)
    meta = {official.meta["key"]: [f"class {label}" for label in range(100)]}
    return files | {official.meta["filename"]: pickle.dumps(meta, protocol=2)}


def stl_files(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], sizes: list[int]
) -> dict[str, bytes]:
    """Raw bytes: planes column by column; labels from 1. The unlabelled part is not needed."""
    files = {}
    for part, rows in (("train", slice(0, sizes[0])), ("test", slice(sizes[0], None))):
        files[f"{part}_X.bin"] = x[rows].transpose(0, 1, 3, 2).tobytes()
        files[f"{part}_y.bin"] = (y[rows] + 1).astype(np.uint8).tobytes()
    return files


def svhn_files(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], sizes: list[int]
) -> dict[str, bytes]:
    """Matlab's files: X (H, W, C, N), y (N, 1) from 1, with 10 for the digit 0."""
    files = {}
    for part, rows in (("train", slice(0, sizes[0])), ("test", slice(sizes[0], None))):
        content = io.BytesIO()
        labels = np.where(y[rows] == 0, 10, y[rows]).astype(np.uint8)[:, None]
        scipy.io.savemat(content, {"X": x[rows].transpose(2, 3, 1, 0), "y": labels})
        files[f"{part}_32x32.mat"] = content.getvalue()
    return files


def tiny_imagenet_files(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], sizes: list[int]
) -> dict[str, bytes]:
    """The zip of 64x64 images: by class in train, under one list in val; test has no labels."""
    classes = [f"n{1000 + label:08}" for label in range(y.max() + 1)]
    boxes: dict[str, list[str]] = {name: [] for name in classes}
    annotations = []
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:

        def add(path: str, data: bytes | str) -> None:
            archive.writestr(f"tiny-imagenet-200/{path}", data)

        # Not in the order of their numbers.
        add("wnids.txt", "\n".join(reversed(classes)))
        add("words.txt", "n00001000\tone")
        add("test/images/test_0.JPEG", b"no label")
        for position, (image, label) in enumerate(zip(x, y, strict=True)):
            name = classes[label]
            if position < sizes[0]:
                file = f"{name}_{len(boxes[name])}.JPEG"
                boxes[name].append(f"{file}\t0\t10\t63\t58\n")
                add(f"train/{name}/images/{file}", png(image))
            else:
                file = f"val_{position - sizes[0]}.JPEG"
                annotations.append(f"{file}\t{name}\t0\t32\t44\t62\n")
                add(f"val/images/{file}", png(image))
        for name, lines in boxes.items():
            add(f"train/{name}/{name}_boxes.txt", "".join(lines))
        add("val/val_annotations.txt", "".join(annotations))
    return {"tiny-imagenet-200.zip": content.getvalue()}


def png(image: np.ndarray[Any, Any]) -> bytes:
    """Encode an image (C, H, W) without loss."""
    content = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(content, "PNG")
    return content.getvalue()


def replace_md5(
    monkeypatch: pytest.MonkeyPatch, name: str, official: Any, files: dict[str, bytes]
) -> None:
    """Make the data set expect the md5 of these files."""
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    if name == "tiny-imagenet":
        archive = dataclasses.replace(tiny_imagenet.ARCHIVE, md5=md5["tiny-imagenet-200.zip"])
        monkeypatch.setattr(tiny_imagenet, "ARCHIVE", archive)
        return
    if name == "svhn":
        lists = {}
        for half in ("train", "test"):
            url, file, _ = official.split_list[half]
            lists[half] = [url, file, md5[file]]
        monkeypatch.setattr(official, "split_list", lists)
        return
    for attribute in ("train_list", "test_list"):
        listed = [[file, md5.get(file, old)] for file, old in getattr(official, attribute)]
        monkeypatch.setattr(official, attribute, listed)
    if hasattr(official, "meta"):
        monkeypatch.setattr(
            official, "meta", official.meta | {"md5": md5[official.meta["filename"]]}
        )


# Images in each file, classes, validation images.
TOYS = {
    "cifar10": ([12] * 5 + [20], 10, 20),
    "cifar100": ([300, 50], 100, 100),
    "stl10": ([40, 12], 10, 10),
    "svhn": ([40, 12], 10, 10),
    "tiny-imagenet": ([40, 12], 10, 10),
}
OFFICIAL = {
    "cifar10": vision.CIFAR10,
    "cifar100": vision.CIFAR100,
    "stl10": vision.STL10,
    "svhn": vision.SVHN,
}


def make_toy(name: str, monkeypatch: pytest.MonkeyPatch) -> Toy:
    sizes, classes, num_val = TOYS[name]
    official = OFFICIAL.get(name)
    info = dataclasses.replace(DATASETS[name], num_val=num_val)
    x = random_images(sum(sizes), *info.shape)
    y = np.arange(sum(sizes)) % classes
    if name in ("cifar10", "cifar100"):
        files = cifar_files(official, x, y, sizes)
    else:
        writers = {
            "stl10": stl_files,
            "svhn": svhn_files,
            "tiny-imagenet": tiny_imagenet_files,
        }
        files = writers[name](x, y, sizes)
    replace_md5(monkeypatch, name, official, files)
    monkeypatch.setitem(DATASETS, name, info)
    return Toy(name, files, torch.from_numpy(x), torch.from_numpy(y), sizes[-1])


@pytest.fixture(params=TOYS)
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Toy:
    return make_toy(request.param, monkeypatch)


def test_official_files_load_with_pixels_labels_and_orientation(toy: Toy, tmp_path: Path) -> None:
    toy.write_files(tmp_path)
    loaded = load_data(toy.name, tmp_path)
    pool = len(toy.x) - toy.num_test
    assert torch.equal(loaded.test.x, toy.x[pool:])
    assert torch.equal(loaded.test.y, toy.y[pool:])
    train = count_labelled_images(loaded.train.x, loaded.train.y)
    val = count_labelled_images(loaded.val.x, loaded.val.y)
    assert train + val == count_labelled_images(toy.x[:pool], toy.y[:pool])
    assert len(loaded.val) == DATASETS[toy.name].num_val
    counts = loaded.val.y.bincount(minlength=loaded.info.num_classes)
    assert counts.amax() - counts.amin() <= 1
    assert loaded.train.x.is_contiguous()
    assert {split.x.dtype for split in (loaded.train, loaded.val, loaded.test)} == {torch.uint8}
    assert loaded.train.y.tolist() != sorted(loaded.train.y.tolist())
    assert load_data(toy.name, tmp_path).sha256 == loaded.sha256
    assert load_data(toy.name, tmp_path, limit_val=5).sha256 != loaded.sha256
    assert not fetching.is_missing(toy.name, tmp_path)
    assert fetching.is_missing(toy.name, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-7],
        lambda content: b"",
        lambda content: content[:-1] + b"\xff",
        None,
    ],
)
def test_a_damaged_or_missing_file_is_named(
    toy: Toy, damage: Callable[[bytes], bytes] | None, tmp_path: Path
) -> None:
    folder = toy.write_files(tmp_path)
    for file, content in toy.files.items():
        (folder / file).unlink()
        if damage:
            (folder / file).write_bytes(damage(content))
        with pytest.raises(BenchError, match=rf"{file}\b.*bench data fetch {toy.name}") as caught:
            load_data(toy.name, tmp_path)
        assert ("damaged" if damage else "missing") in assert_one_line(caught.value)
        (folder / file).write_bytes(content)
    assert load_data(toy.name, tmp_path)


class Payload:
    """Code that runs when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_a_pickle_of_another_origin_is_never_opened(toy: Toy, tmp_path: Path) -> None:
    folder, trace = toy.write_files(tmp_path), tmp_path / "trace"
    pickle.loads(pickle.dumps(Payload(trace))).close()
    trace.unlink()  # it runs where it is opened
    for file in toy.files:
        (folder / file).write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(BenchError, match="damaged"):
        load_data(toy.name, tmp_path)
    assert not trace.exists()


def test_a_missing_folder_is_named_with_the_remedy(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"bench data fetch {toy.name}") as caught:
        load_data(toy.name, tmp_path / "nowhere")
    assert toy.folder in assert_one_line(caught.value)
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert caught.value.exit_code == 1


# Fetching


def replace_download(monkeypatch: pytest.MonkeyPatch, act: Callable[[Download, Path], Any]) -> None:
    monkeypatch.setattr(fetching, "download", act)


def raise_on_download(error: Exception) -> Callable[[Download, Path], None]:
    def act(file: Download, target: Path) -> None:
        raise error

    return act


def test_fetch_without_network_names_the_files_and_their_folder(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_download(monkeypatch, raise_on_download(DownloadError("a.org: timed out")))
    with pytest.raises(BenchError, match="cannot be downloaded") as caught:
        fetching.fetch_data(toy.name, tmp_path)
    line = assert_one_line(caught.value)
    for part in ("a.org: timed out", str(tmp_path), toy.folder, *toy.files):
        assert part in line
    assert f"bench data import {toy.name}" in line
    assert "unlabeled" not in line
    assert caught.value.exit_code == 1


def test_fetch_on_a_full_disk_is_refused(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_download(monkeypatch, raise_on_download(OSError(28, "No space left on device")))
    with pytest.raises(BenchError, match=r"cannot write to .*No space left on device") as caught:
        fetching.fetch_data(toy.name, tmp_path)
    assert assert_one_line(caught.value)


def test_fetch_downloads_missing_files_and_verifies(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(file: Download, target: Path) -> None:
        """Write the file itself, or an archive with more than is needed."""
        if target.name in toy.files:
            target.write_bytes(toy.files[target.name])
        else:
            toy.write_archive(target, "inside/", **{"unlabeled_X.bin": b"not needed"})

    replace_download(monkeypatch, serve)
    root = tmp_path / "new"
    line = fetching.fetch_data(toy.name, root)
    assert line == fetching.verify_data(toy.name, root)
    assert load_data(toy.name, root).sha256 in line
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    left.discard(f"{toy.folder}/download.lock")
    assert left == {f"{toy.folder}/{file}" for file in toy.files}
    replace_download(monkeypatch, raise_on_download(AssertionError("downloaded again")))
    assert fetching.fetch_data(toy.name, root) == line


def test_fetch_into_a_file_is_one_line(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="cannot write to") as caught:
        fetching.fetch_data(toy.name, tmp_path / "file")
    assert assert_one_line(caught.value)


# Importing


@pytest.mark.parametrize(
    "layout", ["folder", "nested folder", "tar", "tar.gz", "flat tar", "itself", "file"]
)
def test_import_from_a_folder_or_archive(toy: Toy, layout: str, tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    match layout:
        case "folder":
            source = toy.write_files(source)
        case "file":
            source = toy.write_files(source) / next(iter(toy.files))
        case "nested folder":
            toy.write_files(source / "deep" / "down")
        case "itself":
            source = toy.write_files(root)
        case _:
            source = toy.write_archive(
                tmp_path / f"source.{layout.split()[-1]}", "" if "flat" in layout else "./a/b/"
            )
    line = fetching.import_data(toy.name, source, root)
    assert line == fetching.verify_data(toy.name, root)
    folder = root / toy.folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == toy.files


def test_import_skips_folders_with_the_name_of_a_file(toy: Toy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    toy.write_files(source)
    for file in toy.files:
        (source / file).mkdir()
    assert fetching.import_data(toy.name, source, tmp_path / "root")


def truncate_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def corrupt_half(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(byte ^ 0x5A for byte in content[len(content) // 2 :])
    file.write_bytes(content)


def write_outside(file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        add_entry(archive, "../outside", b"!")


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (
            "tar",
            lambda file: file.write_text("<html>moved</html>"),
            "neither a folder nor a readable tar",
        ),
        ("tar", lambda file: file.write_bytes(b""), "neither a folder nor a readable tar"),
        ("tar", lambda file: file.unlink(), "neither a folder nor a readable tar"),
        ("tar", truncate_half, None),
        ("tar.gz", truncate_half, "neither a folder nor a readable tar"),
        ("tar.gz", corrupt_half, "neither a folder nor a readable tar"),
        ("tar", write_outside, "does not hold the official"),
    ],
    ids=["html", "empty", "missing", "cut", "cut gz", "corrupt gz", "outside"],
)
def test_import_of_a_bad_archive_copies_nothing(
    toy: Toy,
    suffix: str,
    damage: Callable[[Path], Any],
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, root = toy.write_archive(tmp_path / f"source.{suffix}", "x/"), tmp_path / "root"
    damage(source)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(BenchError, match=message) as caught:
        fetching.import_data(toy.name, source, root)
    assert str(source) in assert_one_line(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {
        source.name
    }  # no root, no scratch, nothing that strayed


def test_import_of_the_wrong_content_copies_nothing(toy: Toy, tmp_path: Path) -> None:
    first, last = next(iter(toy.files)), [*toy.files][-1]
    for damaged in (first, last):
        content = toy.files[damaged][:-1] + b"?"
        source = toy.write_archive(tmp_path / "source.tar", "x/", **{damaged: content})
        with pytest.raises(
            BenchError, match=rf"does not hold the official {toy.name}: .*{damaged}.* is damaged"
        ) as caught:
            fetching.import_data(toy.name, source, tmp_path / "root")
        assert assert_one_line(caught.value)
    incomplete = toy.write_files(tmp_path / "incomplete", without=last)
    with pytest.raises(BenchError, match=f"{last} is missing"):
        fetching.import_data(toy.name, incomplete, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_import_never_follows_a_link_out_of_the_archive(toy: Toy, tmp_path: Path) -> None:
    real = toy.write_files(tmp_path / "real")
    source = tmp_path / "source.tar"
    with tarfile.open(source, "w") as archive:
        for file in toy.files:
            entry = tarfile.TarInfo(file)
            entry.type, entry.linkname = tarfile.SYMTYPE, str(real / file)
            archive.addfile(entry)
    with pytest.raises(BenchError, match="does not hold the official"):
        fetching.import_data(toy.name, source, tmp_path / "root")


def test_import_into_a_file_is_one_line(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="cannot write to") as caught:
        fetching.import_data(toy.name, toy.write_files(tmp_path / "source"), tmp_path / "file")
    assert assert_one_line(caught.value)


def test_digits_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="comes with scikit-learn"):
        fetching.import_data("digits", tmp_path, tmp_path)
    assert not fetching.is_missing("digits", tmp_path)


# Augmentation


def find_crops(original: Tensor, augmented: Tensor, pad: int) -> list[tuple[int, int, bool]]:
    """Return every (top, left, mirrored) at which the padded `original` holds `augmented`."""
    _, h, w = original.shape
    padded = F.pad(original, (pad,) * 4)
    crops = []
    for top, left in itertools.product(range(2 * pad + 1), repeat=2):
        window = padded[:, top : top + h, left : left + w]
        if torch.equal(window, augmented):
            crops.append((top, left, False))
        if torch.equal(window.flip(2), augmented):
            crops.append((top, left, True))
    return crops


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("pad", "flip"), [(0, False), (0, True), (1, False), (2, True), (2, False)]
)
def test_images_are_cropped_and_mirrored_independently(
    pad: int, flip: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randint(1, 256, (200, 3, 7, 9)).to(dtype)
    before = x.clone()
    augmented = augment(x, pad, flip)
    assert torch.equal(x, before)
    assert (augmented.shape, augmented.dtype) == (x.shape, dtype)
    matches = [find_crops(*pair, pad) for pair in zip(x, augmented, strict=True)]
    assert [len(crops) for crops in matches] == [1] * 200
    corners = Counter(crops[0][:2] for crops in matches)
    # Every crop occurs, those at the edges too.
    assert len(corners) == (2 * pad + 1) ** 2
    assert max(corners.values()) < 3.5 * 200 / len(corners) or pad == 0
    mirrored = sum(crops[0][2] for crops in matches)
    assert 70 <= mirrored <= 130 if flip else mirrored == 0


def test_crop_and_mirror_are_independent() -> None:
    torch.manual_seed(0)
    x = torch.randint(1, 256, (400, 1, 5, 5))
    pairs = zip(x, augment(x, 1, True), strict=True)
    crops = [find_crops(original, augmented, 1)[0] for original, augmented in pairs]
    assert len(set(crops)) == 18
    rows = Counter((top, left) for top, left, _ in crops)
    assert min(rows.values()) > 20


def test_augmentation_is_seeded() -> None:
    x = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(augment(x, 2, True))
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_digits_are_neither_moved_nor_mirrored(digits: Data) -> None:
    x = digits.train.x[:200]
    assert torch.equal(augment(x, DIGITS.pad, DIGITS.flip), x)


def test_to_float_is_exact() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(augmentation.to_float(x), torch.arange(256) / 255)
    assert augmentation.to_float(x).dtype == torch.float32
