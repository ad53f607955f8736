"""`slices`: a pack in an empty folder, deadlines anywhere in a run, and stores that go on."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import cli
from bench.records import slice_pack, slices
from bench.system import environment, parts
from bench.system.environment import SOURCE_ROOT, STATE_FILE, source_state
from bench.system.errors import BenchError
from bench.system.files import sha256_of_file
from bench.tracking.store import TrackingStore, open_client

WORDS = "--method natural --epochs 6 --suite digits --student resnet8-w4"
WORDS += " --limit-train 128 --limit-test 24"
# What is packed is the checkout; the package may be installed elsewhere.
CHECKOUT = Path(__file__).parents[1]
# A network of ten megabytes would make this slow: parts are as much smaller.
PART_BYTES = 200_000


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(SOURCE_ROOT))
    monkeypatch.setattr(slices, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(slices, "BACK_BYTES", PART_BYTES)
    return tmp_path


def run_words(seeds: str, store: Path) -> list[str]:
    return [*WORDS.split(), "--seeds", seeds, "--store", str(store)]


def results(store: Path) -> list[dict[str, Any]]:
    """Return what records say of checkpoints, verdicts and accuracies."""
    documents = [json.loads(path.read_text()) for path in sorted((store / "records").glob("*"))]
    for document in documents:
        metrics = document["metrics"].items()
        kept = {name: value for name, value in metrics if not name.startswith("cost/")}
        document["metrics"] = kept
    names = ("spec_id", "checksums", "metrics", "curves", "classes", "verdicts")
    return [{name: document[name] for name in names} for document in documents]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the results of the runs without a deadline."""
    store = tmp_path_factory.mktemp("unbroken") / "runs"
    variables = os.environ | {"PYTHONPATH": str(SOURCE_ROOT), "OMP_NUM_THREADS": "1"}
    variables.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "bench", "run", *run_words("0,1", store)]
    subprocess.run(command, env=variables, check=True, capture_output=True)
    assert len(results(store)) == 2
    return results(store)


def in_training(store: Path) -> bool:
    return any(store.glob("work/*/state.pt"))


def in_evaluation(store: Path) -> bool:
    return any(store.glob("work/*/verdicts_*.npz"))


def between_runs(store: Path) -> bool:
    """Whether one run is recorded, and the next one has no epoch."""
    recorded = any(store.glob("records/*.json"))
    return recorded and not in_training(store) and not in_evaluation(store)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("moment", [in_training, in_evaluation, between_runs])
def test_the_next_slice_goes_on_and_ends_the_same(
    moment: Callable[[Path], bool], tmp_path: Path, unbroken: list[dict[str, Any]]
) -> None:
    """The second slice has what was joined, in another folder; the first machine is gone."""
    first, second, home = tmp_path / "first", tmp_path / "second", tmp_path / "home"
    back, seeds = tmp_path / "back", "0,1" if moment is between_runs else "0"
    expected = unbroken[: len(seeds.split(","))]
    stopped = slices.run_slice(run_words(seeds, first), first, back, lambda: moment(first))
    assert stopped is None
    assert in_evaluation(first) == (moment is in_evaluation)
    states = [path.read_bytes() for path in first.glob("work/*/state.pt")]
    sizes = [path.stat().st_size for path in back.glob("*.[0-9]*")]
    assert len(sizes) > 1
    assert max(sizes) <= PART_BYTES
    assert len(results(back)) == len(results(first)) == (moment is between_runs)
    shutil.rmtree(first)
    slices.join_slice(back, home)
    # The pack of the second slice.
    (tmp_path / "pack").mkdir()
    slices.write_store(home, tmp_path / "pack", PART_BYTES, finished=False)
    slices.join_slice(tmp_path / "pack", second)
    assert [path.read_bytes() for path in second.glob("work/*/state.pt")] == states
    assert slices.run_slice(run_words(seeds, second), second, back, lambda: False) == 0
    shutil.rmtree(second)
    slices.join_slice(back, home)
    assert results(home) == expected
    assert not list(home.glob("work/*/"))
    checkpoints = home.glob("artifacts/*/artifacts/checkpoints/best.pt")
    checksums = [result["checksums"]["best"] for result in expected]
    assert sorted(map(sha256_of_file, checkpoints)) == sorted(checksums)
    assert cli.dispatch(["run", *run_words(seeds, home)]) == 0
    assert results(home) == expected


def test_a_slice_that_ends_before_anything_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["slices", "run", "back", "--minutes", "0.001", "--", *WORDS.split()]
    assert cli.dispatch(words) == 0
    assert capsys.readouterr().out == "time is up: the same command continues\n"
    assert list((tmp_path / "back").iterdir()) == []


def test_a_program_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "GRACE_SECONDS", 0.1)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print()"
    command = [sys.executable, "-u", "-c", f"{code}; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        slices.stop_process(process)
        assert process.returncode == -signal.SIGKILL


# --- joining


def make_store(store: Path) -> Path:
    """Return a store without runs."""
    TrackingStore(store).get_or_create_experiment("digits@3")
    (store / "work" / "unfinished").mkdir(parents=True)
    (store / "work" / "unfinished" / "state.pt").write_bytes(os.urandom(3 * PART_BYTES))
    return store


@pytest.fixture
def back(tmp_path: Path) -> Path:
    """Return what came back of a store, in parts."""
    folder = tmp_path / "back"
    folder.mkdir()
    slices.write_store(make_store(tmp_path / "there"), folder, PART_BYTES, finished=True)
    return folder


def join(store: str = "home") -> int:
    return cli.dispatch(["slices", "join", "back", "--store", store])


def test_artifacts_of_a_joined_store_are_its_own(back: Path, tmp_path: Path) -> None:
    assert join() == 0
    client = open_client(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits@3")
    assert experiment
    assert experiment.artifact_location == (tmp_path / "home" / "artifacts").as_uri()
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"mlflow.db", "work"}
    # A second time, as after an error in the middle.
    assert join() == 0


@pytest.mark.parametrize("damage", ["missing", "damaged", "cut"])
def test_parts_with_a_fault_are_named_and_change_nothing(
    damage: str, back: Path, tmp_path: Path
) -> None:
    part = back / "state.002"
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1] + b"?" * (damage == "damaged"))
    message = "state.002 is missing from" if damage == "missing" else "state.002' is damaged"
    with pytest.raises(BenchError, match=message):
        join()
    assert list((tmp_path / "home").iterdir()) == []


def test_a_store_with_other_runs_is_kept(back: Path, tmp_path: Path) -> None:
    store = TrackingStore(tmp_path / "home")
    experiment = store.get_or_create_experiment("digits@3")
    store.client.create_run(experiment)
    before = (tmp_path / "home" / "mlflow.db").read_bytes()
    with pytest.raises(BenchError, match="the store has runs that the slice does not have"):
        join()
    assert (tmp_path / "home" / "mlflow.db").read_bytes() == before


def test_a_server_has_no_slices(back: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    with pytest.raises(BenchError, match="unset MLFLOW_TRACKING_URI"):
        join()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run back", "missing: --minutes"),
        ("run back --minutes 1", "missing: `--` and the words of `run`"),
        ("run back --minutes 1 --", "missing: `--` and the words of `run`"),
        ("run back --minutes nan -- --method kd", "--minutes: 'nan' is no finite number"),
        ("run back --minutes 1 -- --method kdd", "unknown method 'kdd'"),
        ("run back --minutes 1 -- --method kd --sede 1", "unknown flag --sede"),
        ("join nothing", "'nothing' holds no state.sha256"),
        ("pack pack --dataset cifar", "unknown dataset 'cifar'"),
        ("pack pack --dataset cifar10", "cifar10: .* is missing from 'data/"),
        ("pack pack --have freeze.txt", "'numpy 2.5.2' is no line of `pip freeze`"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str) -> None:
    Path("freeze.txt").write_text("# a comment\n-e git+https://example.com\nnumpy 2.5.2\n")
    with pytest.raises(BenchError, match=message) as caught:
        cli.dispatch(["slices", *words.split()])
    assert "\n" not in str(caught.value)


# --- packing


def test_packages_that_a_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch needs is not followed, and a version that does not fit counts as lacking."""
    monkeypatch.setattr(slice_pack, "SOURCE_ROOT", CHECKOUT)
    needs = slice_pack.project_requirements()
    complete = slice_pack.missing_packages(needs, {}, "3.11")
    names = {text.partition("==")[0] for text in complete}
    assert {"mlflow", "tyro", "sqlalchemy", "numpy", "packaging"} <= names
    assert not {"torch", "torchvision", "triton"} & names
    without_numpy = slice_pack.missing_packages(needs, {"numpy": "", "mlflow": ""}, "3.11")
    assert set(without_numpy) < set(complete)
    assert not any(text.startswith(("numpy==", "mlflow==")) for text in without_numpy)
    old = slice_pack.missing_packages(needs, {"numpy": "1.0"}, "3.11")
    assert any(text.startswith("numpy==") for text in old)


def test_names_and_versions_are_read(tmp_path: Path) -> None:
    file = tmp_path / "freeze.txt"
    file.write_text("numpy==2.5.2\nPyYAML\nmine @ file:///x\ntorch==2.11.0+cu130\n\n")
    expected = {"numpy": "2.5.2", "pyyaml": "", "mine": "", "torch": "2.11.0+cu130"}
    assert slice_pack.read_packages(file) == expected


def cifar_pickle(pixels: bytes) -> bytes:
    """Return the bytes of an official file of CIFAR with other images."""
    rows = (len(pixels) // 3072).to_bytes(2, "little")
    before = b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03(K\x01K\x02eU\x04dataq\x04"
    before += b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b"
    before += b"\x87Rq\x07(K\x01M" + rows + b"M\x00\x0c\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01"
    before += b"\x87Rq\x09(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
    content = before + len(pixels).to_bytes(4, "little") + pixels
    content += b"tbU\tfilenamesq\x0a]q\x0b(U\x05a.pngU\x05b.pngeu."
    assert pickle.loads(content, encoding="latin1")["data"].tobytes() == pixels
    return content


@pytest.fixture
def data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Write a data set of two files with images for mosaics, and others; return their contents."""
    monkeypatch.setattr(slice_pack, "folder_of", lambda _, root: root / "images")
    monkeypatch.setattr(slice_pack, "damage_of", lambda *_: "")
    monkeypatch.setattr(slice_pack, "MOSAIC_BYTES", slice_pack.ROW_BYTES)
    x = np.random.default_rng(0).integers(0, 256, (200, 3072), np.uint8)
    files = {
        "train": cifar_pickle(x.tobytes()),
        "below/test": cifar_pickle(x[:100].tobytes()),
        "odd": cifar_pickle(x[:99].tobytes()),
        "meta": pickle.dumps({"label_names": ["cat"]}, protocol=2),
        "matrix": x[:10].tobytes(),
        "empty": b"",
    }
    for name, content in files.items():
        path = tmp_path / "data" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files


@pytest.fixture
def data_pack(data_files: dict[str, bytes], tmp_path: Path) -> Path:
    """Return a pack of the data set without much else."""
    pack = tmp_path / "pack"
    pack.mkdir()
    slice_pack.pack_data(pack, ["cifar10"], tmp_path / "data")
    (tmp_path / "README.md").touch()
    parts.write_archive(pack, parts.SOURCE, {"README.md": tmp_path / "README.md"}, PART_BYTES)
    return pack


def test_images_are_carried_as_mosaics(
    data_files: dict[str, bytes], data_pack: Path, tmp_path: Path
) -> None:
    """All files come back bit for bit, and nothing is left of the pieces."""
    (tmp_path / "carried").mkdir()
    parts.join_archive(data_pack, parts.DATA, tmp_path / "carried")
    images = tmp_path / "carried" / "data" / "images"
    carried = {str(path.relative_to(images)) for path in images.rglob("*") if path.is_file()}
    pieces = {"train.000", "train.001.webp", "train.002.webp", "train.003", "train.sha256"}
    pieces |= {f"below/test.{ending}" for ending in ("000", "001.webp", "002", "sha256")}
    assert carried == pieces | {"odd", "meta", "matrix", "empty"}
    there = tmp_path / "there"
    there.mkdir()
    parts.unpack_slice(data_pack, there)
    images = there / "data" / "images"
    files = [path for path in images.rglob("*") if path.is_file()]
    assert {str(path.relative_to(images)): path.read_bytes() for path in files} == data_files


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("part", "data.000' is damaged: bring it again"),
        ("pixels", "test is not the file that was packed: Pillow gives other pixels"),
        ("pillow", "test takes numpy, and Pillow with WebP: .*PIL"),
    ],
)
def test_images_that_cannot_be_joined_are_one_line(
    damage: str, message: str, data_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage == "part":
        (data_pack / "data.000").write_bytes(b"?")
    elif damage == "pixels":
        monkeypatch.setattr(parts, "read_mosaic", lambda _: bytes(slice_pack.ROW_BYTES))
    else:
        monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "there").mkdir()
    with pytest.raises(parts.PartsError, match=message) as caught:
        parts.unpack_slice(data_pack, tmp_path / "there")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "there" / "data" / "images" / "below" / "test").exists()


def test_pillow_may_be_one_of_the_wheels(
    data_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(wheels: list[Path], target: Path) -> None:
        (target / parts.SITE).mkdir()
        (target / parts.SITE / f"{wheels[0].stem.partition('-')[0]}.py").touch()

    make_wheel(tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    parts.write_archive(data_pack, parts.WHEELS, {wheel.name: wheel}, PART_BYTES)
    monkeypatch.setattr(parts, "install", install)
    monkeypatch.setattr(parts, "join_pieces", lambda _: import_module("tiny_wheel"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "there").mkdir()
    parts.unpack_slice(data_pack, tmp_path / "there")
    assert sys.modules.pop("tiny_wheel")


def make_wheel(folder: Path) -> None:
    """Write the wheel of a package of one module."""
    with zipfile.ZipFile(folder / "tiny_wheel-1.0-py3-none-any.whl", "w") as wheel:
        metadata = "tiny_wheel-1.0.dist-info"
        wheel.writestr("tiny_wheel.py", "ANSWER = 42\n")
        wheel.writestr(
            f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n"
        )
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{metadata}/WHEEL", tags)
        wheel.writestr(f"{metadata}/RECORD", "")


@pytest.mark.slow
@pytest.mark.e2e
def test_a_pack_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source, data, a wheel and a store arrive, and the program runs there."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("no git checkout, whose files could be packed")
    monkeypatch.setattr(environment, "SOURCE_ROOT", CHECKOUT)
    monkeypatch.setattr(slice_pack, "SOURCE_ROOT", CHECKOUT)
    monkeypatch.setattr(slice_pack, "folder_of", lambda _, root: root / "images")
    monkeypatch.setattr(slice_pack, "damage_of", lambda *_: "")
    monkeypatch.setattr(slice_pack, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(slice_pack, "download_wheels", lambda *words: make_wheel(words[-1]))
    (tmp_path / "data" / "images").mkdir(parents=True)
    content = os.urandom(3 * PART_BYTES)
    (tmp_path / "data" / "images" / "batch").write_bytes(content)
    Path("freeze.txt").write_text("numpy\n")
    make_store(tmp_path / "runs")
    pack = "slices pack pack --dataset cifar10 --have freeze.txt"
    assert cli.dispatch(pack.split()) == 0
    sizes = [path.stat().st_size for path in Path("pack").iterdir()]
    assert max(sizes) <= PART_BYTES
    shutil.move("pack", "carried")
    there = tmp_path / "there"
    monkeypatch.delenv("PYTHONPATH")
    unpack = [sys.executable, "carried/unpack.py", str(there)]
    result = subprocess.run(unpack, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"cd {there} && export PYTHONPATH={there / 'site'}\n"
    assert (there / "data" / "images" / "batch").read_bytes() == content
    assert (there / "runs" / "work" / "unfinished" / "state.pt").exists()
    assert json.loads((there / STATE_FILE).read_text()) == source_state()
    code = "import tiny_wheel, bench; print(tiny_wheel.ANSWER, bench.__file__)"
    variables = os.environ | {"PYTHONPATH": str(there / "site")}
    output = subprocess.check_output([sys.executable, "-c", code], cwd=there, env=variables)
    assert output.decode().split() == ["42", str(there / "bench" / "__init__.py")]
    Path("carried/data.001").unlink()
    result = subprocess.run(unpack, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"error: data.001 is missing from {str(tmp_path / 'carried')!r}\n"


def test_images_of_a_folder_are_not_packed_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(60):
        path = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "pack").mkdir()
    name = f"folder:{tmp_path / 'pets'}@8"
    slice_pack.pack_data(tmp_path / "pack", ["digits", name], tmp_path / "data")
    assert caplog.messages == [
        f"warning: {name} is not packed: copy its folder to the same path there"
    ]
    assert not any((tmp_path / "pack").iterdir())
