"""Models from a hub and to it, against a server on loopback with the hub's addresses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import records
import torch
import yaml
from hub_server import TOKEN, Hub, connect, serve_hub
from torch import Tensor

import bench
from bench import cli, datasets, models
from bench.datasets.augmentation import to_float
from bench.datasets.loading import load_data
from bench.execution import plan
from bench.models import checkpoint, hub
from bench.protocol.options import RunOptions
from bench.records import trained
from bench.system.errors import BenchError, UsageError
from bench.system.files import sha256_of_file
from bench.teachers import cards
from leaderboards.read.records import read_record
from leaderboards.schema.record import Record

pytest.importorskip("huggingface_hub")
from huggingface_hub import constants

REPO = "alice/digits-natural"


@pytest.fixture(scope="module")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with one run, whose network is better than chance."""
    store = tmp_path_factory.mktemp("hub") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        options = RunOptions(method="natural", student="resnet8-w4", epochs=2, limit_test=8)
        (run,) = plan.plan_runs(options, {})
        records.run_planned(run, records.make_context(store))
    return store


@pytest.fixture
def record(trained_store: Path) -> Record:
    (record,) = trained.read_records(trained_store)
    return record


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Work in a new folder, with a token, beside an empty hub."""
    monkeypatch.chdir(tmp_path)
    with serve_hub(tmp_path / "hub") as server:
        connect(server.url, tmp_path, monkeypatch)
        yield server


def network(arch: str = "resnet8-w4") -> bytes:
    """Return an untrained network as a file of torch.save."""
    buffer = io.BytesIO()
    torch.save(models.build(arch, datasets.DIGITS).state_dict(), buffer)
    return buffer.getvalue()


def digits() -> Tensor:
    return to_float(load_data("digits", "data").test.x[:20])


def run_bench(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def publish(store: Path, record: Record, capsys: pytest.CaptureFixture[str]) -> str:
    """Publish the run and return the address that is printed."""
    assert run_bench("export", record.run_id, "--hub", REPO, "--store", store) == 0
    return capsys.readouterr().out.strip()


def test_there_and_back(
    server: Hub, trained_store: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    address = publish(trained_store, record, capsys)
    commit = server.commit_of(REPO, "main")
    assert address == f"hf:{REPO}@{commit}"
    names = [".gitattributes", "README.md", "best.pt", "model.safetensors", "record.json"]
    assert server.files(REPO, commit) == names
    # Its head says what it is, its tensors how images are normalised.
    assert run_bench("teacher", "import", "mine", f"hf:{REPO}") == 0
    card = cards.find_card(Path("runs"), "mine", "digits")
    assert card.origin.startswith(f"imported from {address}:model.safetensors, sha256 unknown")
    assert (card.arch, card.dataset, card.mean) == ("resnet8-w4", "digits", ())
    assert card.clean > 50
    original = trained.load_network(record, trained_store, "best")
    imported = cards.load_teacher(Path("runs"), card, datasets.DIGITS)
    x = digits()
    with torch.no_grad():
        assert torch.equal(imported(x), original(x))
        assert torch.equal(bench.load(address)(x), original(x))
    words = ("--attacks", "fgsm", "--limit-test", 50, "--json")
    capsys.readouterr()
    documents = []
    for file in (f"hf:{REPO}@main", cards.teacher_file(Path("runs"), card.identity)):
        named = ("--arch", card.arch, "--dataset", card.dataset) if isinstance(file, Path) else ()
        assert run_bench("evaluate", "--checkpoint", file, *named, *words) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["accuracy"] == documents[1]["accuracy"]
    assert documents[0]["sha256"] == documents[1]["sha256"] == card.sha256
    assert commit in documents[0]["checkpoint"]


def test_a_record_is_verified_with_a_checkpoint_on_the_hub(
    server: Hub, trained_store: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (trained_store / "records").iterdir()
    artifacts = trained_store / "artifacts" / record.run_id / "artifacts"
    best = (artifacts / "checkpoints" / "best.pt").read_bytes()
    server.write(REPO, {"best.pt": best, "last.pt": network()})
    words = ("import", path, "--verify", "--checkpoint")
    # It is the record's, and the numbers of this record are invented.
    assert run_bench(*words, f"hf:{REPO}:best.pt") == 1
    assert "not reproduced: test/" in last_error(capsys)
    assert run_bench(*words, f"hf:{REPO}:last.pt") == 1
    assert "sha256" in last_error(capsys)
    assert run_bench(*words, f"hf:{REPO}") == 2
    assert "choose one with hf:" in last_error(capsys)


def test_the_card_and_the_record_are_whole(
    server: Hub, trained_store: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(trained_store, record, capsys)
    folder = server.folder / REPO / "commits" / server.commit_of(REPO, "main")
    assert read_record(folder / "record.json") == record
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["pipeline_tag"] == "image-classification"
    assert head["datasets"] == ["digits"]
    assert sha256_of_file(folder / "model.safetensors") in text
    code = text.partition("## Load it")[2].partition("## How it was made")[0]
    lines = [line[4:] for line in code.splitlines() if line.startswith("    ")]
    values: dict[str, Any] = {}
    exec("\n".join(lines), values)
    assert values["logits"].shape == (2, 10)


def test_a_second_export_is_a_second_commit(
    server: Hub, trained_store: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    server.create(REPO)
    server.write(REPO, {"notes.txt": b"mine", "model.safetensors": b"old"})
    publish(trained_store, record, capsys)
    files = server.files(REPO, server.commit_of(REPO, "main"))
    assert "notes.txt" in files
    assert bench.load(f"hf:{REPO}").num_classes == 10


def test_settings_come_from_the_environment(server: Hub, tmp_path: Path) -> None:
    """Of a process of its own: huggingface_hub reads HF_ENDPOINT when it is imported."""
    server.write("bob/net", {"net.pt": network()})
    command = [sys.executable, "-m", "bench", "evaluate", "--checkpoint", "hf:bob/net"]
    command += ["--arch", "resnet8-w4", "--dataset", "digits", "--attacks", "fgsm"]
    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    environment = os.environ | settings | {"PYTHONPATH": str(Path(bench.__file__).parents[1])}
    done = subprocess.run(
        [*command, "--limit-test", "8"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("8 test images")
    assert (tmp_path / "home" / "hub" / "models--bob--net").is_dir()


def test_a_commit_stays_what_it_was(server: Hub) -> None:
    first = server.write("bob/net", {"net.pt": network()})
    old, address = hub.locate(Path(f"hf:bob/net@{first[:40]}"))
    assert address == f"hf:bob/net@{first}:net.pt"
    content = old.read_bytes()
    second = server.write("bob/net", {"net.pt": network("resnet8-w8")})
    assert hub.locate(Path("hf:bob/net"))[1] == f"hf:bob/net@{second}:net.pt"
    assert hub.locate(Path(address))[0].read_bytes() == content


def test_the_model_file_is_taken_and_others_are_chosen(server: Hub) -> None:
    server.write("bob/two", {"a/best.pt": network(), "last.pt": network("resnet8-w8")})
    with pytest.raises(
        UsageError, match=r"has a/best.pt, last.pt: choose one with hf:bob/two:FILE"
    ):
        hub.locate(Path("hf:bob/two"))
    chosen, address = hub.locate(Path("hf:bob/two:a/best.pt"))
    assert address.endswith(":a/best.pt")
    assert checkpoint.load(chosen, "resnet8-w4", datasets.DIGITS).num_classes == 10
    server.write("bob/two", {"model.safetensors": b"x"})
    assert hub.locate(Path("hf:bob/two"))[0].name == "model.safetensors"


def test_odd_names_of_files_stay_one_line(server: Hub) -> None:
    server.write("bob/odd", {"a\n\x1b[2Jb.pt": b"", **{f"{i:03}.pt": b"" for i in range(99)}})
    with pytest.raises(UsageError) as caught:
        hub.locate(Path("hf:bob/odd"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    server.write("bob/named", {"a\nb.pt": b"", "c.pt": b""})
    with pytest.raises(UsageError, match=r"has a\\nb.pt, c.pt: choose"):
        hub.locate(Path("hf:bob/named"))


class Evil:
    """An object whose reading would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("evil"), "run")


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_head(arch: str) -> Callable[[], bytes]:
    """Return a function that makes a safetensors file whose head names a network."""

    def make() -> bytes:
        from safetensors.torch import save

        state = models.build("resnet8-w4", datasets.DIGITS).state_dict()
        return bytes(save(state, {"arch": arch, "dataset": "digits"}))

    return make


NAMED = ("--arch", "resnet8-w4", "--dataset", "digits")
FILES: dict[str, tuple[dict[str, Callable[[], bytes]], tuple[str, ...], str]] = {
    "no weights": (
        {"tf_model.h5": lambda: b"x", "README.md": lambda: b"x"},
        NAMED,
        "has no file of weights (.safetensors, .pt, .pth, .bin, .ckpt, .tar): it has README.md, tf",
    ),
    "Keras": ({"model.bin": lambda: b"\x89HDF\r\n"}, NAMED, "is an HDF5 file, of Keras"),
    "pointer": (
        {"model.safetensors": lambda: b"version https://git-lfs.github.com/spec/v1\n"},
        NAMED,
        "is a pointer of Git LFS",
    ),
    "code": (
        {"pytorch_model.bin": lambda: pickled({"a": Evil()})},
        NAMED,
        "not a checkpoint of tensors",
    ),
    "not stated": ({"net.pt": network}, (), "needs --arch and --dataset"),
    "untrained": ({"net.pt": network}, NAMED, "no more than by chance"),
    "another network": ({"net.pt": lambda: network("resnet8-w8")}, NAMED, "is not a resnet8-w4"),
    "function": (
        {"model.safetensors": with_head("os:abort")},
        (),
        "is made by the function os:abort: name it if you trust it",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_network_is_one_line(
    kind: str, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    files, words, message = FILES[kind]
    server.write("bob/net", {name: make() for name, make in files.items()})
    assert run_bench("teacher", "import", "mine", "hf:bob/net", *words) in (1, 2)
    assert message in last_error(capsys)
    assert not Path("evil").exists()
    assert not Path("runs").exists()


REFUSED = [
    ("hf:net", "'hf:net' is no address on a hub: hf:OWNER/NAME[@REVISION][:FILE]"),
    ("hf:bob/net@", "is no address on a hub"),
    ("hf:bob/../net", "is no address on a hub"),
    ("hf:bob/none", "has no repository 'bob/none', or it is private: a token is taken from"),
    ("hf:bob/net@v2", "bob/net has no revision 'v2'"),
    (f"hf:bob/net@{'0' * 40}", f"bob/net has no revision '{'0' * 40}'"),
    ("hf:bob/net:b.pt", "bob/net has no file 'b.pt': it has net.pt"),
    ("hf:bob/gated", "bob/gated is for those who accept its terms at http://127.0.0.1"),
]


@pytest.mark.parametrize(("address", "message"), REFUSED)
def test_what_is_not_there_is_one_line(
    address: str, message: str, server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    server.write("bob/net", {"net.pt": network()})
    server.write("bob/gated", {"net.pt": network()})
    server.gated.add("bob/gated")
    assert run_bench("evaluate", "--checkpoint", address, *NAMED) in (1, 2)
    assert message in last_error(capsys)


def test_tokens(
    server: Hub,
    trained_store: Path,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.write("bob/net", {"net.pt": network()})
    server.private.add("bob/net")
    evaluate = ("evaluate", "--checkpoint", "hf:bob/net", *NAMED, "--attacks", "fgsm")
    export = ("export", record.run_id, "--store", trained_store, "--hub")
    assert run_bench(*evaluate, "--limit-test", 8) == 0
    assert run_bench(*export, "others/net") == 1
    assert "answers 403, You don't have the rights to create" in last_error(capsys)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for words in (evaluate, (*export, REPO)):
        assert run_bench(*words) == 1
        assert "answers 401, Invalid credentials in Authorization header: a t" in last_error(capsys)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "none")
    assert run_bench(*evaluate) == 1
    assert "or it is private: a token is taken from" in last_error(capsys)
    assert run_bench(*export, REPO) == 1
    assert "a token is taken from `hf auth login` or HF_TOKEN" in last_error(capsys)
    assert not (server.folder / REPO).exists()


def test_no_network_is_one_line(
    server: Hub,
    trained_store: Path,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Nothing listens on a port of the system that nobody may open.
    connect("http://127.0.0.1:1", Path(), monkeypatch)
    assert run_bench("evaluate", "--checkpoint", "hf:bob/net", *NAMED) == 1
    assert "http://127.0.0.1:1, bob/net: [Errno 111] Connection refused" in last_error(capsys)
    assert run_bench("export", record.run_id, "--store", trained_store, "--hub", REPO) == 1
    assert "Connection refused" in last_error(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hub", "digits"), "--hub 'digits': OWNER/NAME, letters, digits and"),
        (("--hub", REPO, "--suite", "digits"), "--hub takes one run or row, and neither --suite"),
        (("--hub", REPO, "--from-mlflow"), "--hub takes one run or row"),
    ],
)
def test_a_wrong_export_is_one_line(
    words: tuple[str, ...],
    message: str,
    server: Hub,
    trained_store: Path,
    record: Record,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_bench("export", record.run_id, "--store", trained_store, *words) == 2
    assert message in last_error(capsys)
    assert not server.requests


def test_the_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, trained_store: Path, record: Record
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    need = r"huggingface_hub: pip install 'robust-distill-bench\[hub\]'"
    with pytest.raises(BenchError, match=need):
        hub.locate(Path("hf:bob/net"))
    with pytest.raises(BenchError, match=need):
        hub.publish(REPO, {}, "")
