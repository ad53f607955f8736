"""Test `model` and `bench.load`: four formats, cards, runs and rows by name, sizes of networks."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import records
import torch
import yaml
from pydantic import TypeAdapter
from torch import Tensor, nn

import bench
from bench import cli, datasets, models
from bench.datasets import loading
from bench.models import checkpoint, formats
from bench.models.size import network_size
from bench.records import trained
from bench.records.sync import StoreRecords
from bench.reference.model_card import ModelFile, render_card
from bench.system.errors import BenchError, UsageError
from bench.system.files import sha256_of_file
from bench.tracking.store import TrackingStore
from leaderboards.read.records import read_record
from leaderboards.schema.record import Record, parse_record
from leaderboards.schema.spec import Spec

# Invented accuracies of AutoAttack would need verdicts on single images.
MEASURED = {name: x for name, x in records.MEASURED.items() if name != "aa"}
ROW = "digits@3/digits/resnet8-w4/natural"
PACKAGES = {"safetensors": "safetensors", "onnx": "onnxruntime"}
NASTY = '<script>alert("x")</script>|`*_$\\[a](b)\n# title\n---\n~~~'


@pytest.fixture(scope="module")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with two seeds of a row, and their records."""
    store = tmp_path_factory.mktemp("model") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        context = records.make_context(store)
        for seed in (0, 1):
            records.run_planned(records.plan_student(seed=seed), context, MEASURED)
    return store


@pytest.fixture
def store(trained_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a new folder, with records that may be changed beside the same runs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").symlink_to(trained_store / "mlflow.db")
    shutil.copytree(trained_store / "records", tmp_path / "runs" / "records")
    # The program would fetch the records that were changed again.
    monkeypatch.setattr(trained, "sync_records", lambda root: StoreRecords(root / "records", []))
    return Path("runs")


def read_seeds(store: Path) -> list[Record]:
    return sorted(trained.read_records(store), key=lambda record: record.spec.seed)


def change(store: Path, record: Record, change: Callable[[dict[str, Any]], None]) -> Record:
    """Write a changed record over the one in the store, with the id of its new spec."""
    document = json.loads(record.to_json())
    change(document)
    changed = parse_record(json.dumps(document).encode())
    (store / "records" / record.spec.record_name).write_text(changed.to_json())
    return changed


def read_spec(content: dict[str, Any]) -> Spec:
    return TypeAdapter(Spec).validate_json(json.dumps(content))


def digits() -> Tensor:
    """Return test images in [0, 1]."""
    return loading.load_data("digits", "", 128, 8).test.x.float() / 255


def logits_of(record: Record, store: Path, name: str = "best") -> Tensor:
    """Return what the checkpoint in the run's artifacts says, read as plain tensors."""
    run = TrackingStore(store).client.get_run(record.run_id)
    path = Path(run.info.artifact_uri.removeprefix("file://"), "checkpoints", f"{name}.pt")
    net = models.build("resnet8-w4", datasets.DIGITS)
    net.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    with torch.no_grad():
        logits: Tensor = net.eval()(digits())
    return logits


@torch.no_grad()
def run_file(path: Path, form: str) -> Tensor:
    """Return the logits of a file, without any part of this program where it needs none."""
    images = digits()
    if form == "onnx":
        import onnxruntime

        (logits,) = onnxruntime.InferenceSession(path).run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)
    if form == "torch-export":
        return torch.export.load(path).module()(images)
    return bench.load(path, arch="resnet8-w4", dataset="digits")(images)


@pytest.mark.parametrize("suffix", formats.FORMATS)
def test_a_format_gives_the_same_logits(suffix: str, store: Path) -> None:
    form = formats.FORMATS[suffix]
    if form in PACKAGES:
        pytest.importorskip(PACKAGES[form])
    record = read_seeds(store)[0]
    path = Path(f"net{suffix}")
    assert cli.dispatch(["model", record.run_id[:12], "--out", str(path)]) == 0
    expected = logits_of(record, store)
    tolerance = 1e-5 if form in ("onnx", "torch-export") else 0.0
    torch.testing.assert_close(run_file(path, form), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("suffix", formats.FORMATS)
def test_the_lines_of_a_card_run(suffix: str, store: Path) -> None:
    form = formats.FORMATS[suffix]
    if form in PACKAGES:
        pytest.importorskip(PACKAGES[form])
    record, path = read_seeds(store)[0], Path(f'a `b` "c"{suffix}')
    assert cli.dispatch(["model", record.run_id, "--out", str(path)]) == 0
    text = Path(f"{path}.md").read_text()
    code = text.partition("## Load it")[2].partition("## How it was made")[0]
    lines = [line[4:] for line in code.splitlines() if line.startswith("    ")]
    values: dict[str, Any] = {}
    exec("\n".join(lines), values)
    assert values["logits"].shape == (2, 10)


def test_a_state_dict_is_tensors_alone(store: Path) -> None:
    record = read_seeds(store)[0]
    assert cli.dispatch(["model", record.run_id, "--out", "net.pt", "--checkpoint", "ema"]) == 0
    tensors = torch.load("net.pt", weights_only=True)
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values())
    assert tensors["mean"].item() == pytest.approx(datasets.DIGITS.mean[0])
    net = bench.load("net.pt", arch="resnet8-w4", dataset="digits")
    assert not net.training
    with torch.no_grad():
        assert torch.equal(net(digits()), logits_of(record, store, "ema"))
    assert not torch.equal(logits_of(record, store, "ema"), logits_of(record, store))


def test_safetensors_say_what_they_are(store: Path) -> None:
    pytest.importorskip("safetensors")
    record = read_seeds(store)[1]
    assert cli.dispatch(["model", record.spec_id, "--out", "net.safetensors"]) == 0
    metadata = checkpoint.read_metadata(Path("net.safetensors"))
    assert metadata["run_id"] == record.run_id
    assert metadata["source_sha256"] == record.checksums["best"]
    assert metadata["bench"] == bench.__version__
    assert json.loads(metadata["accuracy"])["pgd20"] == MEASURED["pgd20"]
    with torch.no_grad():
        assert torch.equal(bench.load("net.safetensors")(digits()), logits_of(record, store))


def test_a_network_is_loaded_by_its_run(store: Path) -> None:
    record = read_seeds(store)[1]
    with torch.no_grad():
        for source in (record.run_id, record.run_id[:8], record.spec_id):
            logits = bench.load(source, store, "last")(digits())
            assert torch.equal(logits, logits_of(record, store, "last"))


def test_a_checkpoint_beside_its_records_needs_no_database(store: Path) -> None:
    record = read_seeds(store)[0]
    expected = logits_of(record, store)
    (store / "mlflow.db").unlink()
    assert torch.equal(logits_of(record, store), expected)


@pytest.mark.parametrize("best", [0, 1])
def test_validation_chooses_a_seed_of_a_row(best: int, store: Path) -> None:
    for seed, record in enumerate(read_seeds(store)):

        def rate(document: dict[str, Any], seed: int = seed) -> None:
            document["curves"]["val/robust"] = [[0, 0.9 if seed == best else 0.1]]
            # A test image has no say.
            document["metrics"]["test/pgd20"] = 0.1 if seed == best else 0.9

        change(store, record, rate)
    for row in (ROW, ROW.replace("@3", "")):
        assert trained.find_record(store, row).spec.seed == best


def test_the_newest_run_of_a_spec_counts(store: Path) -> None:
    record = read_seeds(store)[0]
    document = json.loads(record.to_json()) | {"run_id": 32 * "f", "start_time": 2**41}
    (store / "records" / "again.json").write_text(json.dumps(document))
    assert trained.find_record(store, record.spec_id).run_id == 32 * "f"


def test_a_variant_is_the_last_part_of_a_row(store: Path) -> None:
    first, second = read_seeds(store)
    change(store, first, lambda document: document["tags"].update(variant="tau=1/2"))
    assert trained.find_record(store, f"{ROW}/tau=1/2").spec.seed == 0
    assert trained.find_record(store, ROW).run_id == second.run_id


def test_runs_of_two_protocols_are_no_row(store: Path) -> None:
    record = read_seeds(store)[0]
    spec = records.plan_student().spec
    document = json.loads(record.to_json())
    document["spec"]["training"]["epochs"] = spec.training.epochs + 1
    changed = read_spec(document["spec"])
    document |= {"spec_id": changed.id, "run_id": 32 * "e"}
    (store / "records" / "longer.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"differ in training\.epochs: name one of them"):
        trained.find_record(store, ROW)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("abc", "'abc' names no trained network: a run's id or 4 of its first digits, or a row"),
        ("zzzzzz", "'zzzzzz' names no trained network"),
        ("00000000", "there is no record of a run '00000000'"),
        ("net.onnx", "'net.onnx' names no trained network"),
        ("digits/digits/resnet8-w4/naturel", f"did you mean '{ROW}'?"),
        ("digits/digits", "unknown row 'digits/digits'"),
        ("cifar/cifar10/resnet18/rslad", "unknown row 'cifar/cifar10/resnet18/rslad'"),
    ],
)
def test_a_wrong_source_is_one_line(source: str, message: str, store: Path) -> None:
    with pytest.raises(UsageError) as failure:
        bench.load(source, store)
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_first_digits_of_two_runs_are_refused(store: Path) -> None:
    for record, digit in zip(read_seeds(store), "12", strict=True):
        change(
            store, record, lambda document, digit=digit: document.update(run_id=31 * "a" + digit)
        )
    with pytest.raises(UsageError, match=r"'aaaa' begins the ids of 2 runs: a{31}"):
        bench.load("aaaa", store)


def test_a_store_without_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"there is no record in '.*records'"):
        bench.load("abcd", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("run_id", "name", "message"),
    [
        (32 * "0", "best", "runs:/0{32}/checkpoints/best.pt is not in the store: an imported"),
        ("", "swa", "has no checkpoint 'swa': it has best"),
        ("", "first", "unknown checkpoint 'first': choose from best, ema, last, swa"),
    ],
)
def test_a_checkpoint_that_is_not_there(run_id: str, name: str, message: str, store: Path) -> None:
    def forget(document: dict[str, Any]) -> None:
        document["run_id"] = run_id or document["run_id"]
        del document["checksums"]["swa"]

    record = change(store, read_seeds(store)[0], forget)
    with pytest.raises(BenchError, match=message):
        bench.load(record.run_id, store, name)


def test_records_without_a_store_have_no_checkpoints(store: Path) -> None:
    (store / "mlflow.db").unlink()
    record = read_seeds(store)[0]
    with pytest.raises(BenchError, match="is not in 'runs', which has no runs"):
        bench.load(record.run_id, store)


def test_a_damaged_checkpoint_is_refused(store: Path) -> None:
    def damage(document: dict[str, Any]) -> None:
        document["checksums"]["best"] = 64 * "0"

    record = change(store, read_seeds(store)[0], damage)
    with pytest.raises(BenchError, match=r"sha256 .*, not 0{16}\.\.\.: another or damaged file"):
        bench.load(record.run_id, store)
    assert bench.load(record.run_id, store, "last")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out", "net.h5"], 2, "says no format: end it in .safetensors, .pt, .onnx, .pt2"),
        (["--out", "net.pt", "--format", "onxx"], 2, "unknown format 'onxx': did you mean 'onnx'?"),
        (["--out", "file.pt"], 2, "'file.pt' exists: choose another file with --out"),
        (["--out", "card.pt"], 2, "'card.pt.md' exists: choose another file with --out"),
        (["--out", "file.pt/net.pt"], 1, "cannot write to 'file.pt'"),
        (["--out", "/proc/net.pt"], 1, "cannot write to '/proc'"),
        (["--out", "a.pt", "--checkpoint", "first"], 2, "--checkpoint"),
    ],
)
def test_a_wrong_file_is_one_line(
    words: list[str], code: int, message: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file.pt").touch()
    Path("card.pt.md").touch()
    with pytest.raises(SystemExit) as stop:
        cli.main(["model", read_seeds(store)[0].run_id, *words])
    error = capsys.readouterr().err
    assert stop.value.code == code
    assert message in error
    assert error.count("\n") == 1


def test_folders_are_made_and_paths_printed(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model", ROW, "--out", "a/b/net", "--format", "state-dict"]
    assert cli.dispatch(words) == 0
    assert capsys.readouterr().out.splitlines() == ["a/b/net", "a/b/net.md"]
    with torch.no_grad():
        net = bench.load(Path("a/b/net"), arch="resnet8-w4", dataset="digits")
        expected = bench.load(ROW, store)
        assert torch.equal(net(digits()), expected(digits()))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("missing.pt", {}, "there is no file 'missing.pt'"),
        ("net.pt", {}, "does not say its network: name arch= and dataset="),
        ("net.pt", {"arch": "resnet8-w5", "dataset": "digits"}, "not a resnet8-w5"),
        ("net.pt", {"arch": "resnet8-w4", "dataset": "mnist"}, "unknown dataset 'mnist'"),
        ("bad.pt", {"arch": "resnet8-w4", "dataset": "digits"}, "not a checkpoint"),
    ],
)
def test_a_wrong_file_is_not_loaded(
    source: str, options: dict[str, str], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save(models.build("resnet8-w4", datasets.DIGITS).state_dict(), "net.pt")
    Path("bad.pt").write_text("no tensors")
    with pytest.raises(BenchError, match=message):
        bench.load(source, **options)


def test_a_damaged_safetensors_file_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(BenchError, match="is text and not a checkpoint, it begins 'no tensors'"):
        bench.load(path, arch="resnet8-w4", dataset="digits")


@pytest.mark.parametrize(
    ("form", "module"),
    [("safetensors", "safetensors.torch"), ("onnx", "onnx"), ("onnx", "onnxscript")],
)
def test_a_missing_package_is_named(
    form: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = models.build("resnet8-w4", datasets.DIGITS).eval()
    for name in ("safetensors", "safetensors.torch", "onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    need = rf"needs {form}\S*: pip install 'robust-distill-bench\[{form}\]'"
    with pytest.raises(BenchError, match=need):
        formats.encode(net, datasets.DIGITS.shape, form, {})


def test_other_logits_of_onnx_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    net, other = (models.build("resnet8-w4", datasets.DIGITS).eval() for _ in range(2))
    program = formats.export_program(other, datasets.DIGITS.shape)
    monkeypatch.setattr(formats, "export_program", lambda *_: program)
    with pytest.raises(BenchError, match="onnxruntime's logits differ from torch's by"):
        formats.encode(net, datasets.DIGITS.shape, "onnx", {})


def test_a_card_says_what_the_record_says(store: Path) -> None:
    record = read_seeds(store)[0]
    assert cli.dispatch(["model", record.run_id, "--out", "net.pt"]) == 0
    text = Path("net.pt.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["datasets"] == ["digits"]
    size = network_size("resnet8-w4", "digits")
    for part in (
        f"{size.parameters:,} parameters",
        "eps 0.15 of pixels in [0, 1]",
        "| best | 87.5 |",
        "Percent of 8 test images.",
        "sanity flag pgd-far-above-aa",
        record.tags["command"],
        "0123abc, with uncommitted changes",
        record.checksums["best"],
        sha256_of_file(Path("net.pt")),
    ):
        assert part in text, part


def test_a_card_links_the_paper_and_writes_pixels_as_fractions() -> None:
    # Of the clone: they are not installed.
    folder = Path(__file__).parents[1] / "leaderboards" / "results"
    path = next(folder.glob("cifar-mini@2-cifar10-resnet8-w16-s2-rslad-*.json"))
    record = read_record(path)
    text = render_card(record, ModelFile("net.onnx", "onnx", "best", 64 * "0", 1, 64 * "1"))
    assert "l-inf, eps 8/255 of pixels" in text
    assert "AutoAttack and worst on the first" in text
    assert "](<https://" in text
    assert "(robust; sha256 " in text


def test_planted_names_stay_text(store: Path) -> None:
    def plant(document: dict[str, Any]) -> None:
        document["tags"].update(command=NASTY, code_commit=NASTY, variant=NASTY)
        document["environment"]["bench"] = NASTY
        document["spec"]["method"] = NASTY
        document["spec"]["teachers"] = {NASTY: NASTY}
        document["spec_id"] = read_spec(document["spec"]).id

    record = read_seeds(store)[0]
    changed = change(store, record, plant)
    text = render_card(changed, ModelFile(NASTY, "state-dict", "best", 64 * "0", 1, 64 * "1"))
    head = yaml.safe_load(text.split("\n---\n")[0])
    assert head["tags"][-1] == NASTY
    body = text.partition("\n---\n")[2]
    prose = [line for line in body.splitlines() if not line.startswith("    ")]
    assert "<script>" not in "\n".join(prose)
    assert "[a](b)" not in "\n".join(prose)
    assert [line for line in prose if line.startswith("# ")] == [prose[1]]
    assert not {"---", "~~~", "# title"} & set(prose)


@pytest.mark.parametrize(
    ("arch", "parameters", "multiply_adds"),
    [
        ("resnet18", 11_173_962, 555_422_720),
        ("wrn34-10", 46_160_474, 6_658_906_368),
    ],
)
def test_sizes_are_those_of_the_literature(arch: str, parameters: int, multiply_adds: int) -> None:
    size = network_size(arch, "cifar10")
    assert (size.parameters, size.multiply_adds) == (parameters, multiply_adds)


@pytest.mark.parametrize("arch", ["resnet8-w4", "mobilenetv2", "preactresnet18-w4-silu", "wrn10-1"])
@pytest.mark.parametrize("info", [datasets.DIGITS, datasets.CIFAR100], ids=lambda info: info.name)
def test_multiply_adds_are_those_of_the_layers(arch: str, info: datasets.Dataset) -> None:
    """Each output of a layer costs a multiply-add for each weight that it is a sum over."""
    net, counts = models.build(arch, info).eval(), []

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        weight: Any = module.weight
        counts.append(output.numel() * weight[0].numel())

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    net(torch.zeros(1, *info.shape))
    assert network_size(arch, info.name).multiply_adds == sum(counts)
