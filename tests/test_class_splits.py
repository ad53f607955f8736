"""Halves of the classes of a data set: nothing lost, nothing shared, the same files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from test_data import ROOT, Toy, count_labelled_images, make_toy, replace_download
from test_data_forms import write_parquet

from bench import datasets
from bench.cli.commands.run import read_request
from bench.datasets import DATASETS
from bench.datasets.class_splits import CLASS_SPLITS, ClassSplit
from bench.datasets.dataset import Download
from bench.datasets.files import fetching
from bench.datasets.files.pixels import pixel_digest
from bench.datasets.loading import load_data
from bench.datasets.splits import Split
from bench.execution import plan
from bench.execution.grid import overview
from bench.protocol.options import RunOptions
from bench.records.slice_pack import data_files
from bench.system.errors import BenchError


def labelled_images(split: Split, first_class: int = 0) -> Counter[tuple[bytes, int]]:
    return count_labelled_images(split.x, split.y + first_class)


def check_halves(whole: str, root: Path) -> None:
    """Compare each split of a data set with those of its halves."""
    data = load_data(whole, root)
    halves = {first: load_data(f"{whole}-{first}-{first + 4}", root) for first in (0, 5)}
    for name in ("train", "val", "test"):
        counts = [labelled_images(getattr(half, name), first) for first, half in halves.items()]
        assert not counts[0] & counts[1]
        assert counts[0] + counts[1] == labelled_images(getattr(data, name))
    for half in halves.values():
        sizes = [half.info.num_train, half.info.num_val, half.info.num_test]
        assert sizes == [len(half.train), len(half.val), len(half.test)]
        assert half.train.y.unique().tolist() == [*range(half.info.num_classes)]
        assert half.train.y.tolist() != sorted(half.train.y.tolist())


def test_halves_of_digits_share_no_image_and_are_the_whole() -> None:
    check_halves("digits", Path())


def test_halves_of_cifar10_share_no_image_and_are_the_whole() -> None:
    if not (ROOT / "cifar-10-batches-py").is_dir():
        pytest.skip(f"the official CIFAR-10 (cifar-10-batches-py) is not under {ROOT}")
    check_halves("cifar10", ROOT)


@pytest.mark.parametrize("info", CLASS_SPLITS, ids=lambda info: info.name)
def test_a_part_has_the_statistics_of_the_whole(info: ClassSplit) -> None:
    whole = info.whole
    assert whole is DATASETS[info.name.partition("-")[0]]
    for fact in ("shape", "mean", "std", "pad", "flip", "source"):
        assert getattr(info, fact) == getattr(whole, fact)
    assert info.num_classes == 5


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A small CIFAR-10: two validation images, two test images and four others of each class."""
    toy = make_toy("cifar10", monkeypatch)
    pool = len(toy.x) - toy.num_test
    digests = {
        "train": pixel_digest((toy.x[:pool].numpy(), toy.y[:pool])),
        "test": pixel_digest((toy.x[pool:].numpy(), toy.y[pool:])),
    }
    monkeypatch.setattr(type(datasets.get("cifar10")), "pixels_sha256", digests)
    for first in (0, 5):
        attributes = {
            "part_of": DATASETS["cifar10"],
            "classes": range(first, first + 5),
            "num_test": 10,
        }
        half = type("Half", (ClassSplit,), attributes)
        assert issubclass(half, ClassSplit)
        info = half.with_sizes(20, 10)
        monkeypatch.setitem(DATASETS, info.name, info)
    return toy


def test_halves_of_official_files(toy: Toy, tmp_path: Path) -> None:
    toy.write_files(tmp_path)
    check_halves("cifar10", tmp_path)
    test = load_data("cifar10-5-9", tmp_path).test
    rows = toy.y[-toy.num_test :] >= 5
    assert torch.equal(test.x, toy.x[-toy.num_test :][rows])
    assert torch.equal(test.y, toy.y[-toy.num_test :][rows] - 5)


def test_one_download_serves_the_whole_and_its_halves(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []

    def serve(file: Download, target: Path) -> None:
        downloads.append(file.name)
        toy.write_archive(target, "inside/")

    replace_download(monkeypatch, serve)
    for name in ("cifar10-5-9", "cifar10", "cifar10-0-4"):
        assert fetching.fetch_data(name, tmp_path) == fetching.verify_data(name, tmp_path)
    assert downloads == ["cifar-10-python.tar.gz"]
    assert len(data_files(["cifar10-5-9", "cifar10"], tmp_path)) == len(toy.files)


def test_an_import_of_the_whole_serves_its_halves(toy: Toy, tmp_path: Path) -> None:
    write_parquet(toy, tmp_path / "source")
    fetching.import_data("cifar10", tmp_path / "source", tmp_path / "root")
    check_halves("cifar10", tmp_path / "root")
    toy.write_files(tmp_path / "official")
    line = fetching.import_data("cifar10-0-4", tmp_path / "official", tmp_path / "copy")
    assert line == fetching.verify_data("cifar10-0-4", tmp_path / "root")


def test_what_is_missing_is_named_after_the_whole(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"^cifar10 is not under .*data fetch cifar10`"):
        load_data("cifar10-0-4", tmp_path)
    toy.write_files(tmp_path, without="data_batch_3")
    with pytest.raises(BenchError, match=r"^cifar10: data_batch_3 is missing"):
        load_data("cifar10-0-4", tmp_path)


def test_a_plan_names_one_download(tmp_path: Path) -> None:
    runs = []
    for suite in ("cifar-mini", "cifar-mini-halves"):
        runs += plan.plan_runs(*read_request(["--method", "natural", "--suite", suite]))
    lines = [*overview.missing_data(RunOptions(data_root=tmp_path, method="natural"), runs)]
    assert lines == [f"cifar10 is not under {tmp_path}: a run fetches it, 170,498,071 bytes"]
