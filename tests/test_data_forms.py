"""Data from outside: folders of images, parquet and PNG of official pixels, plugins, one file."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from packages import copy_packages, install_package, site
from PIL import Image
from test_data import Toy, make_toy, png
from test_plugins import exit_code, output_of

from bench import datasets, models
from bench.cli.commands.run import read_request
from bench.datasets import image_folder
from bench.datasets.files import fetching
from bench.datasets.files.pixels import pixel_digest
from bench.datasets.loading import load_data
from bench.execution import plan
from bench.execution.suite_file import resolve_suite
from bench.system.errors import BenchError, UsageError

__all__ = ["site"]

# Folders of images


def write_images(folder: Path, *paths: str, size: tuple[int, int] = (40, 50)) -> None:
    """Write PNG files of one colour, which the class decides."""
    for number, path in enumerate(paths):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        red = 200 if "cat" in path else 20
        Image.new("RGB", size, (red, number % 250, 7)).save(file)


def paths_of(*splits: str, count: int = 30) -> list[str]:
    """Return paths of images of two classes in folders of splits, "" for none."""
    paths = []
    for split in splits:
        for label in ("dog", "cat"):
            paths += [f"{split}/{label}/{number}.png".lstrip("/") for number in range(count)]
    return paths


@pytest.fixture(autouse=True)
def forget_folders() -> None:
    image_folder.open_folder.cache_clear()
    image_folder.list_splits.cache_clear()


def test_split_folders_are_the_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("pets"), *paths_of("train", "val", "test"))
    info = datasets.get("folder:pets@16")
    assert (info.num_train, info.num_val, info.num_test) == (60, 60, 60)
    assert (info.num_classes, info.shape, info.pad) == (2, (3, 16, 16), 2)
    data = load_data(info.name, "data")
    for split in (data.train, data.val, data.test):
        assert split.x.shape == (60, 3, 16, 16)
        # Classes are numbered in the order of their names; cats are red.
        assert torch.equal(split.x[:, 0, 0, 0] == 200, split.y == 0)
    greens = {int(green) for green in data.val.x[:, 1, 0, 0]}
    assert greens == set(range(60, 120))
    pixels = data.train.x.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(info.mean, abs=1e-3)
    assert datasets.get(info.name) == info
    assert load_data("folder:pets@16", "data").sha256 == data.sha256


def test_images_are_resized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pets, root = tmp_path / "pets", tmp_path / "data"
    write_images(pets, *paths_of(""))
    name = datasets.get(f"folder:{pets}").name
    first = load_data(name, root).sha256
    monkeypatch.setattr(image_folder, "decode", lambda *_: pytest.fail("decoded again"))
    assert load_data(name, root).sha256 == first
    monkeypatch.undo()
    # A file that was written again may hold another image.
    os.utime(pets / "cat" / "3.png", (1, 1))
    kept = [*(root / "resized").iterdir()]
    load_data(name, root)
    assert len([*(root / "resized").iterdir()]) == len(kept) + 1


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        (("train", "test"), (54, 6, 60)),
        (("train", "val"), (54, 6, 60)),
        (("",), (42, 6, 12)),
    ],
)
def test_a_hash_of_the_names_makes_the_rest(
    splits: tuple[str, ...], counts: tuple[int, ...], tmp_path: Path
) -> None:
    write_images(tmp_path, *paths_of(*splits))
    info = datasets.get(f"folder:{tmp_path}")
    sizes = (info.num_train, info.num_val, info.num_test)
    assert sum(sizes) == sum(counts)
    assert sizes == pytest.approx(counts, abs=6)
    before = image_folder.list_splits(tmp_path)
    forget = image_folder.list_splits.cache_clear
    forget()
    write_images(tmp_path, f"{splits[0]}/dog/more.png".lstrip("/"))
    after = image_folder.list_splits(tmp_path)
    for split, images in before.items():
        assert set(images) <= set(after[split])


def test_a_changed_folder_is_another_data_set(tmp_path: Path) -> None:
    write_images(tmp_path, *paths_of(""))
    name = datasets.get(f"folder:{tmp_path}").name
    assert "/" not in name
    write_images(tmp_path, "dog/more.png")
    image_folder.list_splits.cache_clear()
    image_folder.open_folder.cache_clear()
    assert datasets.get(f"folder:{tmp_path}").name != name
    with pytest.raises(UsageError, match="its files have changed"):
        datasets.get(name)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "0 train, 0 val, 0 test images in 0 class folders"),
        (paths_of("")[:30], "in 1 class folders"),
        (["train/dog/0.png", "train/cat/0.png"], "0 test images"),
        (["0_dog.png", "1_cat.png"], "in 0 class folders"),
    ],
)
def test_what_is_no_folder_of_classes_is_one_line(
    paths: list[str], message: str, tmp_path: Path
) -> None:
    write_images(tmp_path, *paths)
    with pytest.raises(UsageError, match=message) as caught:
        datasets.get(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="is no folder"):
        datasets.get(f"folder:{tmp_path}/nowhere")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, *paths_of(""))
    name = datasets.get(f"folder:{tmp_path}").name
    content = (tmp_path / "cat" / "3.png").read_bytes()
    (tmp_path / "cat" / "3.png").write_bytes(bytes(len(content)))
    with pytest.raises(BenchError, match=r"cat/3\.png is no image"):
        load_data(name, tmp_path / "data")


def test_a_suite_file_plans_runs_on_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("pets"), *paths_of(""))
    Path("pets.toml").write_text(
        "name='pets'\nbase='digits'\ndatasets=['folder:pets@16']\ntraining.batch = 8\n"
    )
    arguments = "--method natural --suite pets.toml --student resnet8-w4 --dataset folder:pets@16"
    (run,) = plan.plan_runs(*read_request(arguments.split()))
    assert run.spec.dataset == datasets.get("folder:pets@16").name
    (again,) = plan.plan_runs(*read_request(shlex.split(run.command)[4:]))
    assert again.spec == run.spec


# Official pixels in other forms


def write_parquet(toy: Toy, folder: Path) -> None:
    """Write Hugging Face's two files: images as PNG in a column of bytes and paths."""
    rows = [{"bytes": png(image.numpy()), "path": None} for image in toy.x]
    table = pd.DataFrame({"img": rows, "label": toy.y.numpy()})
    (folder / "plain_text").mkdir(parents=True)
    pool = len(toy.x) - toy.num_test
    table[:pool].to_parquet(folder / "plain_text" / "train-00000-of-00001.parquet")
    table[pool:].to_parquet(folder / "plain_text" / "test-00000-of-00001.parquet")


def write_pngs(toy: Toy, folder: Path, flat: bool) -> None:
    """Write numbered images whose class is in their names or is their folder."""
    pool = len(toy.x) - toy.num_test
    for position, (image, label) in enumerate(zip(toy.x, toy.y, strict=True)):
        half, number = ("train", position) if position < pool else ("test", position - pool)
        name = f"{number}_class{label}.png" if flat else f"class{label}/{number}_class{label}.png"
        path = folder / half / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image.numpy()))


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A small CIFAR-10 whose pixels are the official ones."""
    toy = make_toy("cifar10", monkeypatch)
    pool = len(toy.x) - toy.num_test
    digests = {
        "train": pixel_digest((toy.x[:pool].numpy(), toy.y[:pool])),
        "test": pixel_digest((toy.x[pool:].numpy(), toy.y[pool:])),
    }
    monkeypatch.setattr(type(datasets.get("cifar10")), "pixels_sha256", digests)
    return toy


@pytest.mark.parametrize("form", ["parquet", "flat", "folders"])
def test_official_pixels_of_another_form_are_the_same_data(
    form: str, cifar: Toy, tmp_path: Path
) -> None:
    source, root = tmp_path / "source", tmp_path / "root"
    if form == "parquet":
        write_parquet(cifar, source)
    else:
        write_pngs(cifar, source, form == "flat")
    line = fetching.import_data("cifar10", source, root)
    cifar.write_files(tmp_path / "official")
    assert line == fetching.verify_data("cifar10", tmp_path / "official")
    assert fetching.fetch_data("cifar10", root) == line
    (path,) = (path for path in root.rglob("*") if path.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"other pixels or labels|cannot be read"):
        load_data("cifar10", root)


def test_other_pixels_are_refused(cifar: Toy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_pngs(cifar, source, flat=True)
    (source / "test" / "3_class3.png").write_bytes(png(255 - cifar.x[3].numpy()))
    with pytest.raises(BenchError, match=r"20 test images in .* are not those of cifar10"):
        fetching.import_data("cifar10", source, tmp_path / "root")
    shutil.rmtree(source / "test")
    with pytest.raises(BenchError, match="no official file, Parquet or image of the test half"):
        fetching.import_data("cifar10", source, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_the_unpacked_folder_of_tiny_imagenet_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy("tiny-imagenet", monkeypatch)
    toy.write_files(tmp_path / "zip")
    shutil.unpack_archive(tmp_path / "zip" / toy.folder / f"{toy.folder}.zip", tmp_path / "root")
    line = fetching.verify_data("tiny-imagenet", tmp_path / "root")
    assert line == fetching.verify_data("tiny-imagenet", tmp_path / "zip")
    (tmp_path / "root" / toy.folder / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(BenchError, match=r"val_3\.JPEG"):
        load_data("tiny-imagenet", tmp_path / "root")


# Packages and files


PLUGIN = """
import numpy as np
from bench.datasets import Dataset

class Stripes(Dataset):
    num_test = 20

    def read(self, folder, train):
        count = 100 if train else 20
        y = np.arange(count) % 2
        x = np.zeros((count, 1, 8, 8), np.uint8)
        x[y == 1, :, ::2] = 255
        return x, y

DATASET = Stripes("stripes", 2, (1, 8, 8), (0.25,), (0.4,), 0, False, 80, 20, "two patterns")
"""
SUITE = """
from dataclasses import replace
from bench.protocol.suites import DIGITS
SUITE = replace(DIGITS, name="outside", version=1, datasets=("{dataset}",), about="from outside")
"""


def test_a_package_adds_a_data_set_and_a_suite(site: Path) -> None:
    install_package(site, "bench.datasets", "stripes", PLUGIN, "DATASET")
    install_package(site, "bench.suites", "outside", SUITE.format(dataset="stripes"), "SUITE")
    assert "stripes" in datasets.REGISTRY.names()
    data = load_data("stripes", "")
    assert [len(split) for split in (data.train, data.val, data.test)] == [80, 20, 20]
    assert resolve_suite("outside").id == "outside@1"
    arguments = "--method natural --suite outside --student resnet8-w4"
    (run,) = plan.plan_runs(*read_request(arguments.split()))
    assert (run.spec.suite, run.spec.dataset) == ("outside@1", "stripes")
    assert models.build("resnet8-w4", datasets.get("stripes"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no\\nluck')", "cannot be used: RuntimeError: no luck"),
        ("import sys; sys.exit(3)", "cannot be used: SystemExit: 3"),
        ("def broken(:", "cannot be used: SyntaxError: invalid syntax"),
        ("DATASET = 3", "cannot be used: no bench.datasets.dataset.Dataset but int"),
        (PLUGIN.replace('"stripes"', '"dots"'), "cannot be used: its name is 'dots'"),
        ("", "has no attribute 'DATASET'"),
    ],
)
def test_a_package_that_is_no_good_is_one_line(
    code: str, message: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_package(site, "bench.datasets", "stripes", code, "DATASET")
    assert exit_code("data verify stripes") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: dataset 'stripes' cannot be used")
    assert message in line
    assert line.endswith("(package pack-stripes)")
    assert exit_code("list") == 0
    output = capsys.readouterr()
    assert "  cifar10 " in output.out
    assert output.err.count("warning: dataset 'stripes'") == 1


def test_names_of_packages_do_not_take_over(site: Path) -> None:
    code = "raise RuntimeError('never imported')"
    install_package(site, "bench.datasets", "cifar10", code, "DATASET")
    for package in ("pack-one", "pack-two"):
        install_package(site, "bench.datasets", "twice", PLUGIN, "DATASET", package)
    assert datasets.get("cifar10").num_classes == 10
    with pytest.raises(BenchError, match="more than once: package pack-one and package pack-two"):
        datasets.get("twice")


def test_a_suite_of_a_package_is_checked(site: Path) -> None:
    install_package(site, "bench.suites", "outside", SUITE.format(dataset="nothing"), "SUITE")
    with pytest.raises(UsageError, match="--suite 'outside': unknown dataset 'nothing'"):
        resolve_suite("outside")


@pytest.mark.e2e
def test_a_data_set_touches_exactly_one_file(tmp_path: Path) -> None:
    """List, suite, run, record and leaderboard take a new file; a broken one is one line."""
    copy_packages(tmp_path)
    folder = tmp_path / "bench" / "datasets"
    (folder / "stripes.py").write_text(PLUGIN)
    (folder / "faulty.py").write_text("DATASET = nothing\n")
    (tmp_path / "mine.toml").write_text("name='mine'\nbase='digits'\ndatasets=['stripes']\n")
    assert "stripes: 80 train, 20 validation, 20 test, 1x8x8" in output_of(
        "-m bench data verify stripes", tmp_path
    )
    text = output_of("-m bench list datasets", tmp_path)
    assert " stripes " in text.replace("\n", " \n ")
    assert "warning: dataset 'faulty' cannot be used: NameError" in text
    short = "--limit-train 64 --limit-test 8 --epochs 1 --student resnet8-w4"
    text = output_of(f"-m bench run --method natural --suite mine.toml {short}", tmp_path)
    assert "stripes resnet8-w4 natural seed 0: clean" in text
    output_of("-m bench leaderboard", tmp_path)
    assert "stripes" in (tmp_path / "leaderboard" / "leaderboard.md").read_text()
