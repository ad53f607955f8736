"""The Python API: it does what the commands do, in silence, and fails with their messages."""

from __future__ import annotations

import inspect
import io
import logging
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tasks import trained
from torch import nn

import bench
from bench import cli, datasets, models
from bench.cli import commands
from bench.models import checkpoint
from bench.protocol.options import list_options
from bench.system import log
from bench.system.errors import BenchError, UsageError
from bench.system.tables import format_table
from leaderboards.read.records import collect
from leaderboards.schema import metrics

# A run of seconds: by keyword and as flags.
SMALL: dict[str, Any] = {
    "method": "trades", "student": "resnet8-w4", "epochs": 1, "limit_train": 128,
    "limit_test": 8, "beta": 3, "seeds": [0, 1],
}  # fmt: skip
FLAGS = "run --method trades --student resnet8-w4 --epochs 1 --limit-train 128 --limit-test 8"
IMAGES, LABELS = torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64)
ATTACKED = {"attacks": ["fgsm", "pgd20"], "limit_test": 20}


class Failing(nn.Module):
    """A network of a caller with a fault."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("two\nlines")


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with the small run, made by the API."""
    folder = tmp_path_factory.mktemp("api")
    bench.run(**SMALL, store=folder)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the checkpoint of an untrained network, without normalisation."""
    torch.manual_seed(0)
    net = models.build("resnet8-w4", datasets.DIGITS)
    path = tmp_path / "net.pt"
    checkpoint.save(path, {k: v for k, v in net.state_dict().items() if k not in ("mean", "std")})
    return path


def error_of_command(words: str, capfd: pytest.CaptureFixture[str]) -> str:
    """Return the line in which a command line ends."""
    with pytest.raises(SystemExit):
        cli.main(words.split())
    (line,) = capfd.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def test_importing_it_is_cheap() -> None:
    code = "import sys, bench; dir(bench); bench.run; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "pandas", "mlflow", "pydantic", "bench.api.evaluation"}
    assert not heavy & {*done.stdout.split()}


def test_a_notebook_shows_no_table_that_is_made(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert format_table(["a"], [["b"]]) == "a\nb"
    assert capfd.readouterr() == ("", "")


def test_other_attributes_do_not_exist() -> None:
    assert {"run", "evaluate", "analyze", "leaderboard", "load"} < {*dir(bench)}
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'rum'"):
        _ = bench.rum


@pytest.mark.parametrize("name", ["run", "evaluate", "analyze", "leaderboard"])
def test_help_shows_the_options_of_the_command(name: str) -> None:
    text = io.StringIO()
    with redirect_stdout(text):
        help(getattr(bench, name))
    parameters = inspect.signature(getattr(bench, name)).parameters
    for option in list_options(commands.load_module(name).COMMAND.options):
        if option.name in ("quiet", "verbose", "json"):
            continue
        assert option.name in parameters
        assert f"    {option.name}: " in text.getvalue()
    assert parameters["verbose"].default is False


def test_a_run_is_that_of_the_command(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = f"{FLAGS} --beta 3 --seeds 0,1 --store {tmp_path}"
    assert cli.dispatch(words.split()) == 0
    assert "2 to do, 0 already recorded" in capfd.readouterr().err
    ours, theirs = collect(store / "records"), collect(tmp_path / "records")
    same = ["spec_id", "seed", "variant", "command", "sha256.best", "sha256.last", metrics.CLEAN]
    assert ours[same].to_dict() == theirs[same].to_dict()
    assert ours["param/hyper.beta"].tolist() == ["3.0", "3.0"]


def test_a_recorded_run_is_a_row_and_nothing_is_printed(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    frame = bench.run(**SMALL, store=str(store))
    assert capfd.readouterr() == ("", "")
    records = collect(store / "records")
    assert frame["seed"].tolist() == [0, 1]
    assert frame["run_id"].tolist() == records["run_id"].tolist()
    assert frame["spec_id"].tolist() == records["spec_id"].tolist()
    assert frame["AutoAttack"].tolist() == records[metrics.RANK_METRIC].tolist()
    assert set(frame["variant"]) == {"beta=3.0"}
    assert frame["train seconds"].gt(0).all()
    assert bench.load(frame["run_id"][0], store)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("workers", [1, 2])
def test_training_prints_nothing_either(
    workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    bench.run(**SMALL | {"seeds": 0}, store=tmp_path, workers=workers)
    assert torch.equal(torch.get_rng_state(), state), "random numbers of the caller"
    assert capfd.readouterr() == ("", "")
    (path,) = (tmp_path / "logs").iterdir()
    assert "bench.run(method='trades', student='resnet8-w4', epochs=1" in path.read_text()


def test_verbose_prints_what_the_command_does(
    store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.run(**SMALL, store=store, verbose=True)
    ours = capfd.readouterr()
    assert "0 to do, 2 already recorded" in ours.err
    cli.dispatch(f"{FLAGS} --beta 3 --seeds 0,1 --store {store}".split())
    assert capfd.readouterr() == ours


def test_a_dry_run_makes_nothing(store: Path, tmp_path: Path) -> None:
    frame = bench.run(**SMALL | {"seeds": (1, 2)}, store=store, dry_run=True)
    assert frame["run_id"].notna().tolist() == [True, False]
    frame = bench.run(**SMALL, store=tmp_path / "none", dry_run=True)
    assert frame["seed"].tolist() == [0, 1]
    assert frame[["run_id", "Clean", "AutoAttack"]].isna().all(axis=None)
    assert list(tmp_path.iterdir()) == []


def test_it_runs_beside_the_main_thread(store: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    frames: list[pd.DataFrame] = []
    arguments = SMALL | {"seeds": 0, "force": True, "store": store}
    thread = threading.Thread(target=lambda: frames.append(bench.run(**arguments)))
    thread.start()
    thread.join()
    assert len(frames[0]) == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def checksums(folder: Path) -> dict[str, str]:
    """Return the hashes of the best checkpoints of a store by seed."""
    records = collect(folder / "records")
    return dict(zip(records["seed"].map(str), records["sha256.best"], strict=True))


def test_calls_of_several_threads_take_turns(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def train(seed: int) -> None:
        bench.run(**SMALL | {"seeds": seed}, store=tmp_path)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capfd.readouterr() == ("", "")
    assert checksums(tmp_path) == checksums(store)


def test_what_the_caller_chose_of_torch_stays_and_changes_no_result(
    store: Path, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), torch.autocast("cpu"):
            frame = bench.run(**SMALL | {"seeds": 0}, store=tmp_path)
            net = bench.load(frame["run_id"][0], tmp_path)
            assert not torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert net.mean.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    assert checksums(tmp_path)["0"] == checksums(store)["0"]


@pytest.mark.parametrize("captured", [False, True])
def test_handlers_and_warnings_of_the_caller_stay(captured: bool, store: Path) -> None:
    logging.captureWarnings(captured)
    handler, shown = logging.NullHandler(), warnings.showwarning
    log.LOGGER.addHandler(handler)
    try:
        bench.leaderboard(store=store)
        assert handler in log.LOGGER.handlers
        assert warnings.showwarning is shown
    finally:
        log.LOGGER.removeHandler(handler)
        logging.captureWarnings(False)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"epochz": 3}, "--epochz 3"),
        ({"tau": 3}, "--tau 3"),
        ({"epochs": 0}, "--epochs 0"),
        ({"lr": -1}, "--lr=-1"),
        ({"student": ["resnet8-w4", "resnet8-x"]}, "--student resnet8-w4,resnet8-x"),
        ({"student": ("resnet8-w4", "resnet8-w4")}, "--student resnet8-w4,resnet8-w4"),
        ({"seeds": [0, -1]}, "--seeds 0,-1"),
        ({"method": "rsld"}, "--method rsld"),
        ({"method": ["rslad", "trades"], "beta": 2}, "--method rslad,trades --beta 2"),
        ({"suite": Path("none.toml")}, "--suite none.toml"),
        ({"config": "none.toml"}, "--config none.toml"),
        ({"config": "none.toml", "official": True}, "--config none.toml --official"),
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"store": "/dev/null"}, "--store /dev/null"),
        ({"workers": 0}, "--workers 0"),
        ({"beta": 0.0, "method": "trades", "official": True, "tuned": 1}, ""),
    ],
)
def test_a_wrong_option_is_the_line_of_the_command(
    keywords: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = words or "--beta 0.0 --method trades --official --tuned 1"
    if "--method" not in words:
        words += " --method trades"
    expected = error_of_command(f"run {words}", capfd)
    with pytest.raises(BenchError) as failure:
        bench.run(**{"method": "trades", **keywords})
    assert str(failure.value).partition(" (`")[0] == expected.partition(" (`")[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epochs": "eight"}, "--epochs: Input should be a valid integer, not 'eight'"),
        ({"precision": "fp8"}, "--precision: invalid choice 'fp8', choose from fp32, bf16"),
        ({"beta": "much"}, "--beta: Input should be a valid number, not 'much'"),
        ({"quiet": True}, "--quiet: of the command alone"),
    ],
)
def test_a_wrong_value_is_one_line(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as failure:
        bench.run("trades", **keywords)
    assert str(failure.value).partition(" (`help(bench.run)`)")[0] == message


def test_a_method_that_is_missing_is_one_line() -> None:
    with pytest.raises(UsageError, match="missing: --method, or --config"):
        bench.run()
    with pytest.raises(UsageError, match="missing: --checkpoint"):
        bench.evaluate(None, dataset="digits")


def test_a_run_that_fails_is_raised_when_the_others_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from bench.training.trainer import Trainer

    fit = Trainer.fit

    def fail(trainer: Trainer, *arguments: Any) -> Any:
        if trainer.spec.seed == 0:
            raise ValueError("out of luck")
        return fit(trainer, *arguments)

    monkeypatch.setattr(Trainer, "fit", fail)
    with pytest.raises(BenchError) as failure:
        bench.run(**SMALL, store=tmp_path)
    label, _, cause = str(failure.value).partition(" (beta=3.0): ")
    assert cause == "failed: ValueError: out of luck (1 of 2 runs failed)"
    assert capfd.readouterr() == ("", "")
    assert collect(tmp_path / "records")["seed"].tolist() == ["1"]
    cli.dispatch(f"{FLAGS} --beta 3 --store {tmp_path}".split())
    assert f"{label} (beta=3.0): failed: ValueError: out of luck (" in capfd.readouterr().err


def test_an_evaluation_is_that_of_the_command(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = bench.evaluate(file, arch="resnet8-w4", dataset="digits", **ATTACKED)
    assert capfd.readouterr() == ("", "")
    words = f"evaluate --checkpoint {file} --arch resnet8-w4 --dataset digits"
    assert cli.dispatch(f"{words} --attacks fgsm,pgd20 --limit-test 20".split()) == 0
    printed = capfd.readouterr().out.splitlines()
    ours = repr(result).splitlines()
    assert ours[0] == printed[0] == "20 test images, l-inf 0.15"
    # Seconds differ.
    assert [line[:23] for line in ours] == [line[:23] for line in printed]
    assert result.to_document()["arch"] == "resnet8-w4"


def test_an_evaluation_is_a_frame(file: Path) -> None:
    result = bench.evaluate(file, arch="resnet8-w4", dataset="digits", **ATTACKED)
    frame = result.to_frame()
    assert frame.index.tolist() == ["clean", "fgsm", "pgd20", "worst"]
    assert frame["accuracy"].to_dict() == result.accuracy()
    assert frame.loc["pgd20", "forwards"] == result.cost["pgd20"].forwards
    assert frame["seconds"].isna().tolist() == [True, False, False, True]


def test_mean_and_std_are_those_of_the_command(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    network = {"arch": "resnet8-w4", "dataset": "digits", **ATTACKED}
    result = bench.evaluate(file, mean=[0.5], std=(0.25,), **network)
    assert (result.about["mean"], result.about["std"]) == ([0.5], [0.25])
    words = f"evaluate --checkpoint {file} --arch resnet8-w4 --dataset digits --mean 0.5"
    expected = error_of_command(words, capfd)
    with pytest.raises(UsageError) as failure:
        bench.evaluate(file, mean=[0.5], **network)
    assert str(failure.value) == expected


def test_a_module_is_attacked_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    net, x, y = trained(10)
    net.train()
    result = bench.evaluate(net, x, y, attacks="pgd20", eps=0.1)
    assert capfd.readouterr() == ("", "")
    assert net.training
    assert result.about == {
        "network": "Sequential", "dataset": "", "norm": "Linf", "eps": 0.1, "seed": 0,
    }  # fmt: skip
    assert result.worst.shape == (24,)
    assert "training-mode" in result.flags
    net.eval()
    on_test_images = bench.evaluate(net, dataset="digits", attacks=["pgd20"], limit_test=24)
    assert on_test_images.about["eps"] == 0.15
    assert len(on_test_images.worst) == 24
    arrays = bench.evaluate(net, x.numpy(), y.numpy(), attacks="pgd20", eps=0.1, limit_test=5)
    assert torch.equal(arrays.worst, result.worst[:5])


def test_a_module_is_a_surrogate() -> None:
    net, x, y = trained(10)
    other, _, _ = trained(10, steps=20)
    result = bench.evaluate(net, x, y, surrogate=other, attacks="pgd20@surrogate", eps=0.2)
    assert list(result.robust) == ["pgd20@surrogate"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "missing: --dataset, or x and y"),
        ({"x": 0, "y": 0}, "missing: --eps, or --dataset, whose suite has one"),
        ({"x": 0}, "images, x and y, and a surrogate module need a checkpoint in memory"),
        ({"checkpoint": "a.pt", "x": 0, "y": 0}, "images, x and y, and a surrogate module need"),
        ({"dataset": "digits", "arch": "resnet8-w4"}, "--arch: for files, and the checkpoint is"),
        ({"dataset": "digits", "surrogate": "net.pt"}, "--surrogate: for files, and the"),
        ({"dataset": "digits", "attacks": "pgd"}, "unknown attack 'pgd': did you mean 'tpgd'?"),
        ({"dataset": "mnist"}, "unknown dataset 'mnist'"),
        ({"checkpoint": 3}, "--checkpoint: Input is not a valid path"),
        ({"x": "a", "y": [0], "eps": 0.1}, "x and y must be tensors or arrays of plain numbers"),
        ({"x": IMAGES, "y": 0, "eps": 0.1}, "x and y must be tensors or arrays of plain numbers"),
        ({"x": IMAGES.to_sparse(), "y": LABELS, "eps": 0.1}, "x and y must be tensors or arrays"),
        ({"x": IMAGES.to("meta"), "y": LABELS, "eps": 0.1}, "x and y must be tensors or arrays"),
        ({"x": IMAGES + 0j, "y": LABELS, "eps": 0.1}, "x and y must be tensors or arrays of"),
        ({"x": IMAGES, "y": LABELS, "eps": 0.1, "limit_test": -1}, "a test limit of -1 is out of"),
        ({"x": IMAGES, "y": LABELS, "eps": 0.1, "limit_test": 3}, "a test limit of 3 is out of"),
        ({"checkpoint": Failing(), "x": IMAGES, "y": LABELS, "eps": 0.1}, "two lines"),
    ],
)
def test_what_cannot_be_attacked_is_one_line(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as failure:
        bench.evaluate(**{"checkpoint": nn.Linear(1, 1), **keywords})
    assert str(failure.value).startswith(message)
    assert len(str(failure.value).splitlines()) == 1


def test_the_leaderboard_is_the_rendered_table(store: Path, tmp_path: Path) -> None:
    frame = bench.leaderboard("digits", store=store, out=tmp_path / "site")
    (path,) = (tmp_path / "site" / "tables").glob("*-resnet8-w4.csv")
    rendered = pd.read_csv(path, keep_default_na=False, na_values=[""])
    assert frame["suite"].tolist() == ["digits@3"]
    assert frame["role"].tolist() == ["student"]
    values = frame.drop(columns=["suite", "role"])
    names = dict(zip(rendered.columns, values.columns, strict=True))
    assert names[metrics.RANK_METRIC] == "AutoAttack"
    assert names[f"{metrics.RANK_METRIC}_sd"] == "AutoAttack sd"
    assert names[metrics.TRAIN_SECONDS] == "train seconds"
    for metric, name in names.items():
        expected, value = rendered[metric][0], values[name][0]
        # A text that is empty has no letter in the file.
        expected = "" if isinstance(value, str) and pd.isna(expected) else expected
        assert value == pytest.approx(expected, nan_ok=True), name
    assert (tmp_path / "site" / "index.html") in frame.attrs["paths"]


def test_the_leaderboard_writes_nothing_unless_asked(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench.leaderboard(store=store)["seeds"].tolist() == [2]
    assert bench.leaderboard(records=store / "records").attrs["paths"] == []
    empty = bench.leaderboard(store="none")
    assert empty["role"].empty
    assert "nothing is recorded in 'none' yet" in empty.attrs["problems"][0]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"suite": "digit"}, "--suite digit"),
        ({"records": "none"}, "--records none"),
        ({"out": "/dev/null/site"}, "--out /dev/null/site"),
    ],
)
def test_a_leaderboard_that_fails_has_the_line_of_the_command(
    keywords: dict[str, Any], words: str, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = error_of_command(f"leaderboard --store {store} {words}", capfd)
    with pytest.raises(BenchError) as failure:
        bench.leaderboard(**{"store": store, **keywords})
    assert str(failure.value) == expected


def test_load_takes_the_normalisation_and_the_key(file: Path, tmp_path: Path) -> None:
    network = {"arch": "resnet8-w4", "dataset": "digits"}
    x = torch.rand(4, 1, 8, 8)
    raw, scaled = bench.load(file, **network), bench.load(file, **network, mean=[0.5], std=[0.25])
    assert scaled.mean.item() == 0.5
    with torch.no_grad():
        assert torch.allclose(scaled(x), raw((x - 0.5) / 0.25), atol=1e-5)
    state = torch.load(file, weights_only=True)
    both = tmp_path / "both.pt"
    torch.save({"one": state, "two": {name: value * 0 for name, value in state.items()}}, both)
    assert bench.load(both, **network, key="two").state_dict()["linear.bias"].abs().sum() == 0
    with pytest.raises(UsageError, match=r"--mean and --std: both with 1 numbers for digits"):
        bench.load(file, **network, mean=[0.5, 0.5], std=[1, 1])


def test_a_run_has_its_normalisation(store: Path) -> None:
    with pytest.raises(UsageError, match=r"key, mean and std: of a file, and '.*' is a run"):
        bench.load("digits/digits/resnet8-w4/trades/beta=3.0", store, mean=[0.5], std=[1.0])
