"""Splits and their hash, the official file formats in small, getting and importing files, augmentation."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import io
import os
import pickle
import tarfile
import tempfile
import urllib.error
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets as vision

from bench.datasets import DATASETS, DIGITS, augmentation, fetching, official_files, splits
from bench.datasets.augmentation import augment
from bench.datasets.loading import load_data
from bench.datasets.splits import Data
from bench.system.errors import BenchError, UsageError

# sha256 of the loaded data: scikit-learn's digits (1.9.1) and the official CIFAR-10, under this project's fixed splits.
# They change only with a change of protocol, which needs a new version of the suites.
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


def named(x: Tensor, y: Tensor) -> Counter[tuple[bytes, int]]:
    """Every image with its label, counted."""
    return Counter((image.numpy().tobytes(), int(label)) for image, label in zip(x, y, strict=True))


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# Digits and the splits


def test_digits_splits_are_disjoint_and_cover_everything(digits: Data) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    whole = named(
        torch.from_numpy(np.rint(images * 255 / 16).astype(np.uint8)).view(-1, 1, 8, 8),
        torch.tensor(labels),
    )
    assert [len(split) for split in (digits.train, digits.val, digits.test)] == [1257, 180, 360]
    parts = [named(split.x, split.y) for split in (digits.train, digits.val, digits.test)]
    assert sum(parts, Counter()) == whole
    assert sum(whole.values()) == 1797
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
def test_a_limit_keeps_the_first_images_and_nothing_else_changes(
    digits: Data, which: str, count: int
) -> None:
    limited = load_data("digits", "", **{f"limit_{which}": count})
    for name in ("train", "val", "test"):
        split, whole = getattr(limited, name), getattr(digits, name)
        end = count if name == which else len(whole)
        assert len(split) == end
        assert torch.equal(split.x, whole.x[:end])
        assert torch.equal(split.y, whole.y[:end])
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
def test_a_limit_out_of_range_is_named(limit: dict[str, int], size: str) -> None:
    (value,) = limit.values()
    with pytest.raises(UsageError, match=rf"{value:,} is out of range.*{size} images") as caught:
        load_data("digits", "", **limit)
    assert one_line(caught.value)


@pytest.mark.parametrize(
    "y", [[0] * 50 + [1] * 30 + [2] * 20, [0, 1] * 40, list(range(7)) * 9, [3] * 12]
)
@pytest.mark.parametrize("n", [1, 7, 10])
def test_stratified_is_proportional_sorted_and_seeded(y: list[int], n: int) -> None:
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
    ("name", "near"), [("cifr10", "cifar10"), ("stl-10", "stl10"), ("digit", "digits")]
)
def test_unknown_names_get_the_nearest_spelling(
    call: Callable[[str], Any], name: str, near: str
) -> None:
    with pytest.raises(UsageError, match=f"unknown dataset '{name}'.*{near}") as caught:
        call(name)
    assert one_line(caught.value)


# The official CIFAR-10


def test_cifar10_has_the_official_files_and_sizes(cifar10: Data) -> None:
    assert official_files.damage_in(vision.CIFAR10, ROOT / "cifar-10-batches-py") is None
    assert [len(split) for split in (cifar10.train, cifar10.val, cifar10.test)] == [
        45_000,
        5_000,
        10_000,
    ]
    assert cifar10.train.x.shape[1:] == cifar10.info.shape


def test_cifar10_is_balanced_and_its_hash_golden(cifar10: Data) -> None:
    for split, each in ((cifar10.train, 4500), (cifar10.val, 500), (cifar10.test, 1000)):
        assert split.y.bincount().tolist() == [each] * 10
    assert cifar10.sha256 == CIFAR10_SHA256


def test_cifar10_normalisation_is_that_of_its_pixels(cifar10: Data) -> None:
    sample = augmentation.to_float(cifar10.train.x[:10_000])
    assert sample.mean(dim=(0, 2, 3)).tolist() == pytest.approx(cifar10.info.mean, abs=0.005)
    assert sample.std(dim=(0, 2, 3)).tolist() == pytest.approx(cifar10.info.std, abs=0.005)


# The official formats in small


@dataclass(frozen=True)
class Toy:
    """Files in an official format with few images, and what they hold: x (N, C, H, W), y; the test set comes last."""

    name: str
    cls: Any
    files: dict[str, bytes]
    x: Tensor
    y: Tensor
    num_test: int

    def put(self, root: Path, without: str = "") -> Path:
        """Writes the files where they belong under `root`."""
        folder = root / self.cls.base_folder
        folder.mkdir(parents=True)
        for file, content in self.files.items():
            if file != without:
                (folder / file).write_bytes(content)
        return folder

    def pack(self, file: Path, inside: str, **changed: bytes) -> Path:
        """A tar archive of the files, in a folder `inside` it; `changed` replaces contents by name."""
        with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as archive:
            for name, content in (self.files | changed).items():
                add(archive, f"{inside}{name}", content)
        return file


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def random_images(n: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def cifar_files(
    cls: Any, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], sizes: list[int]
) -> dict[str, bytes]:
    """Pickled dictionaries: each row one image, the red plane first, rows from the top."""
    files = {}
    bounds = np.cumsum([0, *sizes])
    for (file, _), start, end in zip(
        [*cls.train_list, *cls.test_list], bounds, bounds[1:], strict=False
    ):
        rows, labels = x[start:end].reshape(end - start, -1), y[start:end].tolist()
        if cls is vision.CIFAR100:
            entry = {
                "data": rows,
                "fine_labels": labels,
                "coarse_labels": [label // 5 for label in labels],
            }
        else:
            entry = {"data": rows, "labels": labels, "batch_label": file}
        files[file] = pickle.dumps(entry, protocol=2)
    meta = {cls.meta["key"]: [f"class {label}" for label in range(100)]}
    return files | {cls.meta["filename"]: pickle.dumps(meta, protocol=2)}


def stl_files(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], sizes: list[int]
) -> dict[str, bytes]:
    """Raw bytes: planes column by column; labels from 1. The unlabelled part is not needed."""
    files = {}
    for part, some in (("train", slice(0, sizes[0])), ("test", slice(sizes[0], None))):
        files[f"{part}_X.bin"] = x[some].transpose(0, 1, 3, 2).tobytes()
        files[f"{part}_y.bin"] = (y[some] + 1).astype(np.uint8).tobytes()
    return files


def relist(monkeypatch: pytest.MonkeyPatch, cls: Any, files: dict[str, bytes]) -> None:
    """Makes torchvision expect the md5 of these files."""
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    for attribute in ("train_list", "test_list"):
        listed = [[file, md5.get(file, old)] for file, old in getattr(cls, attribute)]
        monkeypatch.setattr(cls, attribute, listed)
    if hasattr(cls, "meta"):
        monkeypatch.setattr(cls, "meta", cls.meta | {"md5": md5[cls.meta["filename"]]})


# images in each file, classes, validation images
TOYS = {
    "cifar10": ([12] * 5 + [20], 10, 20),
    "cifar100": ([300, 50], 100, 100),
    "stl10": ([40, 12], 10, 10),
}


@pytest.fixture(params=TOYS)
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Toy:
    name: str = request.param
    sizes, classes, num_val = TOYS[name]
    cls = {"cifar10": vision.CIFAR10, "cifar100": vision.CIFAR100, "stl10": vision.STL10}[name]
    info = dataclasses.replace(DATASETS[name], num_val=num_val)
    x = random_images(sum(sizes), *info.shape)
    y = np.arange(sum(sizes)) % classes
    files = stl_files(x, y, sizes) if name == "stl10" else cifar_files(cls, x, y, sizes)
    relist(monkeypatch, cls, files)
    monkeypatch.setitem(DATASETS, name, info)
    return Toy(name, cls, files, torch.from_numpy(x), torch.from_numpy(y), sizes[-1])


def test_official_files_load_with_right_pixels_labels_and_orientation(
    toy: Toy, tmp_path: Path
) -> None:
    toy.put(tmp_path)
    loaded = load_data(toy.name, tmp_path)
    pool = len(toy.x) - toy.num_test
    assert torch.equal(loaded.test.x, toy.x[pool:])
    assert torch.equal(loaded.test.y, toy.y[pool:])
    assert named(loaded.train.x, loaded.train.y) + named(loaded.val.x, loaded.val.y) == named(
        toy.x[:pool], toy.y[:pool]
    )
    assert len(loaded.val) == DATASETS[toy.name].num_val
    counts = loaded.val.y.bincount(minlength=loaded.info.num_classes)
    assert counts.amax() - counts.amin() <= 1
    assert loaded.train.x.is_contiguous()
    assert {split.x.dtype for split in (loaded.train, loaded.val, loaded.test)} == {torch.uint8}
    assert loaded.train.y.tolist() != sorted(loaded.train.y.tolist())
    assert (
        load_data(toy.name, tmp_path).sha256
        == loaded.sha256
        != load_data(toy.name, tmp_path, limit_val=5).sha256
    )
    assert not fetching.is_missing(toy.name, tmp_path)
    assert fetching.is_missing(toy.name, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-7], lambda whole: b"", lambda whole: whole[:-1] + b"\xff", None],
)
def test_a_damaged_or_missing_file_is_named(
    toy: Toy, damage: Callable[[bytes], bytes] | None, tmp_path: Path
) -> None:
    folder = toy.put(tmp_path)
    for file, content in toy.files.items():
        (folder / file).unlink()
        if damage:
            (folder / file).write_bytes(damage(content))
        with pytest.raises(BenchError, match=rf"{file}\b.*bench data fetch {toy.name}") as caught:
            load_data(toy.name, tmp_path)
        assert ("damaged" if damage else "missing") in one_line(caught.value)
        (folder / file).write_bytes(content)
    assert load_data(toy.name, tmp_path)


class Payload:
    """Code that runs when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.file), "w")


def test_a_foreign_pickle_is_never_opened(toy: Toy, tmp_path: Path) -> None:
    folder, trace = toy.put(tmp_path), tmp_path / "trace"
    pickle.loads(pickle.dumps(Payload(trace))).close()
    trace.unlink()  # it does run where it is opened
    for file in toy.files:
        (folder / file).write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(BenchError, match="damaged"):
        load_data(toy.name, tmp_path)
    assert not trace.exists()


def test_a_missing_folder_says_what_to_put_where(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"bench data fetch {toy.name}") as caught:
        load_data(toy.name, tmp_path / "nowhere")
    assert toy.cls.base_folder in one_line(caught.value)
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert caught.value.exit_code == 1


# Fetching


def download_that(monkeypatch: pytest.MonkeyPatch, toy: Toy, act: Callable[[Path], Any]) -> None:
    monkeypatch.setattr(toy.cls, "download", lambda self: act(Path(self.root)))


def failing(error: Exception) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (urllib.error.URLError(OSError(101, "Network is unreachable")), "Network is unreachable"),
        (
            urllib.error.HTTPError("http://x", 404, "Not Found", http.client.HTTPMessage(), None),
            "404",
        ),
        (TimeoutError("timed out"), "timed out"),
        (ConnectionResetError(104, "Connection reset by peer"), "reset by peer"),
        (http.client.IncompleteRead(b"half"), "IncompleteRead"),
        (RuntimeError("File not found or corrupted.\nTry again"), "File not found or corrupted."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_without_network_fetch_says_what_to_put_where(
    toy: Toy, error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_that(monkeypatch, toy, failing(error))
    with pytest.raises(BenchError, match="cannot be downloaded") as caught:
        fetching.fetch_data(toy.name, tmp_path)
    message = one_line(caught.value)
    assert all(word in message for word in (said, str(tmp_path), toy.cls.base_folder, *toy.files))
    assert f"bench data import {toy.name}" in message
    assert "unlabeled" not in message
    assert caught.value.exit_code == 1


def test_fetch_on_a_full_disk_says_so(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_that(monkeypatch, toy, failing(OSError(28, "No space left on device")))
    with pytest.raises(BenchError, match=r"cannot write to .*No space left on device") as caught:
        fetching.fetch_data(toy.name, tmp_path)
    assert one_line(caught.value)


def test_fetch_downloads_what_is_missing_and_verifies(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_that(monkeypatch, toy, toy.put)
    line = fetching.fetch_data(toy.name, tmp_path / "new")
    assert line == fetching.verify_data(toy.name, tmp_path / "new")
    assert load_data(toy.name, tmp_path / "new").sha256 in line
    download_that(monkeypatch, toy, failing(AssertionError("downloaded again")))
    assert fetching.fetch_data(toy.name, tmp_path / "new") == line


def test_fetch_into_a_file_is_one_line(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="cannot write to") as caught:
        fetching.fetch_data(toy.name, tmp_path / "file")
    assert one_line(caught.value)


# Importing


@pytest.mark.parametrize("form", ["folder", "nested folder", "tar", "tar.gz", "flat tar", "itself"])
def test_import_from_a_folder_or_archive(toy: Toy, form: str, tmp_path: Path) -> None:
    given, root = tmp_path / "given", tmp_path / "root"
    match form:
        case "folder":
            given = toy.put(given)
        case "nested folder":
            toy.put(given / "deep" / "down")
        case "itself":
            given = toy.put(root)
        case _:
            given = toy.pack(
                tmp_path / f"given.{form.split()[-1]}", "" if "flat" in form else "./a/b/"
            )
    line = fetching.import_data(toy.name, given, root)
    assert line == fetching.verify_data(toy.name, root)
    folder = root / toy.cls.base_folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == toy.files


def test_import_from_a_folder_that_holds_other_things_too(toy: Toy, tmp_path: Path) -> None:
    given = tmp_path / "given"
    toy.put(given)
    for file in toy.files:
        (given / file).mkdir()
    assert fetching.import_data(toy.name, given, tmp_path / "root")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def scratched(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(byte ^ 0x5A for byte in content[len(content) // 2 :])
    file.write_bytes(content)


def stray(file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        add(archive, "../outside", b"!")


@pytest.mark.parametrize(
    ("suffix", "spoil", "said"),
    [
        (
            "tar",
            lambda file: file.write_text("<html>moved</html>"),
            "neither a folder nor a readable tar",
        ),
        ("tar", lambda file: file.write_bytes(b""), "neither a folder nor a readable tar"),
        ("tar", lambda file: file.unlink(), "neither a folder nor a readable tar"),
        ("tar", cut, None),
        ("tar.gz", cut, "neither a folder nor a readable tar"),
        ("tar.gz", scratched, "neither a folder nor a readable tar"),
        ("tar", stray, "does not hold the official"),
    ],
    ids=["html", "empty", "missing", "cut", "cut gz", "scratched gz", "stray"],
)
def test_import_of_a_bad_archive_copies_nothing(
    toy: Toy,
    suffix: str,
    spoil: Callable[[Path], Any],
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, root = toy.pack(tmp_path / f"given.{suffix}", "x/"), tmp_path / "root"
    spoil(given)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(BenchError, match=said) as caught:
        fetching.import_data(toy.name, given, root)
    assert str(given) in one_line(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {
        given.name
    }  # no root, no scratch, nothing that strayed


def test_import_of_the_wrong_content_copies_nothing(toy: Toy, tmp_path: Path) -> None:
    first, *_, last = toy.files
    for wrong in (first, last):
        given = toy.pack(tmp_path / "given.tar", "x/", **{wrong: toy.files[wrong][:-1] + b"?"})
        with pytest.raises(
            BenchError, match=rf"does not hold the official {toy.name}: .*{wrong}.* is damaged"
        ) as caught:
            fetching.import_data(toy.name, given, tmp_path / "root")
        assert one_line(caught.value)
    lacking = toy.put(tmp_path / "lacking", without=last)
    with pytest.raises(BenchError, match=f"{last} is missing"):
        fetching.import_data(toy.name, lacking, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_import_never_follows_a_link_out_of_the_archive(toy: Toy, tmp_path: Path) -> None:
    real = toy.put(tmp_path / "real")
    given = tmp_path / "given.tar"
    with tarfile.open(given, "w") as archive:
        for file in toy.files:
            entry = tarfile.TarInfo(file)
            entry.type, entry.linkname = tarfile.SYMTYPE, str(real / file)
            archive.addfile(entry)
    with pytest.raises(BenchError, match="does not hold the official"):
        fetching.import_data(toy.name, given, tmp_path / "root")


def test_import_where_nothing_can_be_written_is_one_line(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="cannot write to") as caught:
        fetching.import_data(toy.name, toy.put(tmp_path / "given"), tmp_path / "file")
    assert one_line(caught.value)


def test_digits_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="comes with scikit-learn"):
        fetching.import_data("digits", tmp_path, tmp_path)
    assert not fetching.is_missing("digits", tmp_path)


# Augmentation


def offsets(original: Tensor, made: Tensor, pad: int) -> list[tuple[int, int, bool]]:
    """Each place and mirroring at which `made` (C, H, W) can be cut out of the zero-padded `original`."""
    _, h, w = original.shape
    wide = F.pad(original, (pad,) * 4)
    windows = {
        (i, j): wide[:, i : i + h, j : j + w]
        for i in range(2 * pad + 1)
        for j in range(2 * pad + 1)
    }
    return [
        (*place, mirrored)
        for place, window in windows.items()
        for mirrored in (False, True)
        if torch.equal(window.flip(2) if mirrored else window, made)
    ]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("pad", "flip"), [(0, False), (0, True), (1, False), (2, True), (2, False)]
)
def test_each_image_is_cropped_and_mirrored_on_its_own(
    pad: int, flip: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randint(1, 256, (200, 3, 7, 9)).to(dtype)
    kept = x.clone()
    made = augment(x, pad, flip)
    assert torch.equal(x, kept)
    assert (made.shape, made.dtype) == (x.shape, dtype)
    found = [offsets(before, after, pad) for before, after in zip(x, made, strict=True)]
    assert [len(places) for places in found] == [1] * 200
    crops = Counter(places[0][:2] for places in found)
    assert len(crops) == (2 * pad + 1) ** 2  # every place occurs, the corners too
    assert max(crops.values()) < 3.5 * 200 / len(crops) or pad == 0
    mirrored = sum(places[0][2] for places in found)
    assert 70 <= mirrored <= 130 if flip else mirrored == 0


def test_crop_and_mirror_are_independent() -> None:
    torch.manual_seed(0)
    x = torch.randint(1, 256, (400, 1, 5, 5))
    found = [
        offsets(before, after, 1)[0] for before, after in zip(x, augment(x, 1, True), strict=True)
    ]
    assert len(set(found)) == 18
    rows = Counter((top, left) for top, left, _ in found)
    assert min(rows.values()) > 20


def test_augmentation_is_seeded() -> None:
    x = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(augment(x, 2, True))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_digits_are_neither_moved_nor_mirrored(digits: Data) -> None:
    x = digits.train.x[:200]
    assert torch.equal(augment(x, DIGITS.pad, DIGITS.flip), x)


def test_to_float_is_exact() -> None:
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(augmentation.to_float(x), torch.arange(256) / 255)
    assert augmentation.to_float(x).dtype == torch.float32
