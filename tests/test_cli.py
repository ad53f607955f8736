"""Bad input through the command line: one clear line on standard error and exit code 2 or 1."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import bench
from bench import cli, datasets, models
from bench.execution.cost import Cost
from bench.models import checkpoint
from bench.system.files import sha256_of_file


@pytest.fixture(autouse=True)
def folder_with_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test in a new folder with good and bad files; restore the signal handlers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    torch.manual_seed(0)
    net = models.build("resnet8-w4", datasets.DIGITS)
    checkpoint.save(tmp_path / "net.pt", {"state_dict": net.state_dict()})
    complex_state = net.state_dict() | {"linear.bias": torch.zeros(10, dtype=torch.complex64)}
    checkpoint.save(tmp_path / "complex.pt", {"state_dict": complex_state})
    (tmp_path / "page.pt").write_text("error: access denied\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "cut" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "cut" / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half")
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for name, handler in handlers.items():
        signal.signal(name, handler)


def exit_code(words: str) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert isinstance(stop.value.code, int)
    return stop.value.code


RUN = "run --suite digits --method"
EVALUATE = "evaluate --arch resnet8-w4 --dataset digits --attacks fgsm --checkpoint"
ATTACK = "evaluate --arch resnet8-w4 --dataset digits --checkpoint net.pt --attacks"
LONG = 256 * "x"  # one byte more than the name of a file may have
BAD = [
    ("rnu", 2, "unknown command 'rnu': did you mean 'run'?"),
    ("teacher", 2, "`teacher` needs an action: train, import, list, verify"),
    ("data fetsh cifar10", 2, "unknown data action 'fetsh': did you mean 'fetch'?"),
    ("run", 2, "missing: --method, or --config"),
    ("run gacd", 2, "unexpected argument 'gacd'"),
    (f"{RUN} gcad", 2, "unknown method 'gcad': did you mean 'gacd'?"),
    (f"{RUN} gacd,ard,gacd", 2, "names 'gacd' twice"),
    (f"{RUN} gacd,", 2, "unknown method ''"),
    (f"{RUN} gacd --no-dry-run", 2, "unknown flag --no-dry-run: did you mean --dry-run?"),
    (f"{RUN} gacd --no-symmetic", 2, "did you mean --no-symmetric?"),
    (f"{RUN} gacd -- --dry-run", 2, "unknown flag --"),
    ("tune --method al --dry-run", 2, "unknown method 'al': did you mean 'all'?"),
    ("tune --method= --dry-run", 2, "unknown method ''"),
    ("run --method gacd --suite digit", 2, "unknown suite 'digit': did you mean 'digits'?"),
    (f"{RUN} gacd --dataset cifar01", 2, "unknown dataset 'cifar01': did you mean 'cifar10'?"),
    (f"{RUN} gacd --dataset cifar10", 2, "suite digits is not for cifar10: it covers digits"),
    (f"{RUN} gacd --student resnet81", 2, "unknown model 'resnet81': did you mean 'resnet18'?"),
    (f"{RUN} gacd --student resnet9-w4", 2, "the depth must be 6n + 2"),
    (f"{RUN} gacd --teacher nobody", 2, "unknown teacher 'nobody': choose from natural, robust"),
    (f"{RUN} gacd --tua 0.1", 2, "unknown flag --tua: did you mean --tau?"),
    (f"{RUN} gacd,ard --estimator nce", 2, "a method's own flags need exactly one --method"),
    (f"{RUN} gacd --tau abc", 2, "--tau: 'abc' is no finite number"),
    (f"{RUN} gacd --tau", 2, "--tau needs a value"),
    (f"{RUN} gacd --epochs abc", 2, "--epochs: 'abc' is no whole number"),
    (f"{RUN} gacd --tau nan", 2, "--tau: 'nan' is no finite number"),
    (f"{RUN} gacd --estimator nec", 2, "--estimator: invalid choice 'nec', choose from nce"),
    (f"{RUN} gacd -q -v", 2, "--quiet and --verbose: one of them"),
    (f"{RUN} gacd -w", 2, "unknown flag -w"),
    ("tune --method gacd -v --quiet", 2, "--quiet and --verbose: one of them"),
    ("teacher train -q --verbose", 2, "--quiet and --verbose: one of them"),
    (f"{RUN} gacd --limit-test 999 --dry-run", 2, "a test limit of 999 is out of range"),
    (f"{RUN} gacd --seeds 0,0", 2, "names '0' twice"),
    (f"{RUN} gacd --seeds 0,00", 2, "each seed once"),
    (f"{RUN} gacd --seeds 0 --seeds 1", 2, "--seeds is given twice"),
    (f"{RUN} gacd --limit_train=8 --limit-train 8", 2, "--limit-train is given twice"),
    (f"{RUN} gacd --seeds one", 2, "whole numbers with commas"),
    (f"{RUN} gacd --seeds=-1", 2, "none negative"),
    (f"{RUN} gacd --epochs 0", 2, "--epochs 0: at least 1"),
    (f"{RUN} gacd --limit-train 10", 2, "a batch of 64 is larger than the 10 training images"),
    (
        f"{RUN} gacd --limit-train 99999",
        2,
        "a train limit of 99,999 is out of range: the train set has 1,257",
    ),
    (f"{RUN} gacd --limit-test 0", 2, "a test limit of 0 is out of range"),
    (f"{RUN} gacd --device cdua", 2, "--device cdua: there is no such device here"),
    (
        f"{RUN} gacd --store file/runs",
        1,
        "cannot write to file/runs: Not a directory; choose another folder",
    ),
    ("run --method gacd --suite cifar-mini --data-root cut", 1, "data_batch_1"),
    ("evaluate", 2, "missing: --checkpoint"),
    ("evaluate --checkpoint net.pt", 2, "missing: --arch and --dataset, or --release"),
    (f"{EVALUATE} net.pt --release Chen2021LDT_WRN34_10", 2, "did you mean 'Chen2021LTD_WRN34_10'"),
    (f"{EVALUATE} net.pt --release Zhang2019Theoretically", 2, "a release for cifar10: say which"),
    (f"{EVALUATE} net.pt --mean 0.5", 2, "--mean and --std: both with 1 numbers for digits"),
    (f"{EVALUATE} net.pt --key ema", 2, "holds no network under --key ema: it has ., state_dict"),
    ("evaluate --chekpoint net.pt", 2, "unknown flag --chekpoint: did you mean --checkpoint?"),
    (f"{EVALUATE} none.pt", 1, "there is no checkpoint 'none.pt'"),
    (f"{EVALUATE} {'long' * 64}.pt", 1, "cannot be read: File name too long"),
    (
        f"{EVALUATE} page.pt",
        1,
        "'page.pt' is text and not a checkpoint, it begins 'error: access denied'",
    ),
    (f"{EVALUATE} net.pt --sha256 {'0' * 64}", 1, "another or damaged file"),
    (f"{EVALUATE} net.pt --eps -0.1", 2, "--eps -0.1: between 0 and 1"),
    (f"{EVALUATE} net.pt --norm L2 --eps -0.1", 2, "--eps -0.1: at least 0"),
    (f"{EVALUATE} net.pt --batch-size 0", 2, "--batch-size 0: at least 1"),
    (f"{EVALUATE} net.pt --limit-test 361", 2, "a test limit of 361 is out of range"),
    (f"{EVALUATE} net.pt --out file/x.npz", 1, "cannot write 'file/x.npz'"),
    (
        "evaluate --arch resnet8-w8 --dataset digits --checkpoint net.pt",
        1,
        "'net.pt' is not a resnet8-w8 for digits",
    ),
    (
        "evaluate --arch resnet8-w4 --dataset digits --checkpoint net.pt --attacks pdg20",
        2,
        "did you mean 'pgd20'?",
    ),
    (f"{ATTACK} fgsm@surrogate", 2, "write fgsm@surrogate and give the file with --surrogate"),
    (f"{ATTACK} aa@surrogate --surrogate net.pt", 2, "aa stops where the surrogate is fooled"),
    (f"{ATTACK} fgsm@surrogate --surrogate none.pt", 1, "there is no checkpoint 'none.pt'"),
    (f"{ATTACK} fgsm --surrogate net.pt", 2, "--surrogate is for attacks such as pgd20@surrogate"),
    (
        f"{ATTACK} fgsm@surrogate --surrogate net.pt --surrogate-mean 0.5",
        2,
        "both with 1 numbers for digits, std above 0, or neither (of the surrogate)",
    ),
    (f"{ATTACK} fgsm --norm L2", 2, "fgsm is an attack in Linf, not in L2"),
    (f"{ATTACK} fgsm --norm L3", 2, "invalid choice 'L3'"),
    (f"{ATTACK} noise-6", 2, "did you mean 'noise-"),
    (
        "data verify cifar10",
        1,
        "cifar10 is not under 'data': run `python -m bench data fetch cifar10`, or put",
    ),
    (
        "data verify cifar10 --data-root cut",
        1,
        "is damaged or cut short (4 bytes, not the official md5)",
    ),
    ("data import digits", 2, "missing: FILE-OR-DIR"),
    ("data import digits file", 2, "there is nothing to import"),
    ("data import cifar10 file", 1, "neither a folder nor a readable tar archive"),
    (
        "teacher import mine page.pt --arch resnet8-w4 --dataset digits",
        1,
        "'page.pt' is text and not a checkpoint, it begins 'error: access denied'",
    ),
    (
        "teacher import robust net.pt --arch resnet8-w4 --dataset digits",
        2,
        "neither robust nor natural",
    ),
    (f"{EVALUATE} net.pt --seed=-1", 2, "--seed -1: between 0 and 2^63 - 1"),
    (f"{EVALUATE} net.pt --out page.pt", 2, "--out 'page.pt' exists and holds no verdicts"),
    (
        f"{EVALUATE} complex.pt",
        1,
        "holds linear.bias as something else than a plain tensor of real numbers",
    ),
    ("teacher verify robust", 2, "'robust' is a role in a suite"),
    ("teacher verify nobody --limit-test 0", 2, "--limit-test 0: at least 1"),
    ("teacher verify nobody --limit-train 0", 2, "--limit-train 0: at least 1"),
    ("teacher verify nobody", 2, "unknown teacher 'nobody'"),
    ("leaderboard --suite digit", 2, "unknown suite 'digit': did you mean 'digits'?"),
    ("leaderboard --store file", 2, "--store 'file': a folder, and this is a file"),
    (
        "doctor --store sqlite:///x.db",
        2,
        "a folder; the address of a database belongs in MLFLOW_TRACKING_URI",
    ),
    (
        "doctor --device \x1b[31mcpu",
        2,
        r"--device: '\x1b[31mcpu' has a line break or another control",
    ),
    (f"{RUN} natural --store loop", 1, "cannot write to loop"),
    (f"{RUN} natural --store {LONG}", 1, "File name too long"),
    (f"export --suite digits --store {LONG}", 1, "File name too long"),
    (f"leaderboard --store {LONG}", 1, f"error: '{LONG}': File name too long"),
    (f"leaderboard --records {LONG}", 1, f"cannot read records: there is no folder '{LONG}'"),
    (f"data verify cifar10 --data-root {LONG}", 1, "File name too long"),
    (f"teacher import mine {LONG} --arch resnet8-w4 --dataset digits", 1, f"'{LONG}'"),
    ("leaderboard --out file/x", 1, "cannot write to 'file/x': Not a directory"),
    ("completion csh", 2, "invalid choice 'csh', choose from bash, zsh, fish"),
    ("show", 1, "no run is recorded in sqlite:////"),
    ("show --json", 1, "no run is recorded in sqlite:////"),
    ("show abc", 2, "'abc' names no run: an id, or at least 4 of its first digits"),
    ("show --store file", 2, "--store 'file': a folder, and this is a file"),
]


@pytest.mark.parametrize(("words", "code", "message"), BAD, ids=[words for words, *_ in BAD])
def test_bad_input_is_one_line(
    words: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert exit_code(words) == code
    assert sorted(Path().rglob("*")) == before
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert len([line for line in lines if line.startswith("error")]) == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(sys.modules[cli.main.__module__], "dispatch", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        cli.main([])


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("output", "message"),
    [
        (">&-", "error: standard output is closed\n"),
        (">/dev/full", "error: No space left on device\n"),
    ],
)
def test_unusable_output_is_one_line(output: str, message: str, unbuffered: str) -> None:
    command = ["sh", "-c", f'"$@" {output}', "sh", sys.executable, "-m", "bench", "--help"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stderr=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr.decode()) == (1, message)


def test_a_command_that_prints_nothing_needs_no_output() -> None:
    """A wrong command keeps its line and its exit code."""
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "bench", "run", "--seds", "1"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "did you mean --seeds?" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "run --help"])
def test_a_closed_pipe_is_silent(words: str, unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "bench", *words.split()]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_missing_store_gives_empty_pages(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("leaderboard --store typo") == 0
    assert capsys.readouterr().err == "nothing is recorded in 'typo' yet: the pages are empty\n"
    assert not Path("typo").exists()


def test_a_dry_run_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "bench.execution.grid.run.estimate_costs",
        lambda todo, *_: [Cost(1.0, 1.0, 1.0)] * len(todo),
    )
    before = sorted(Path().rglob("*"))
    assert exit_code(f"{RUN} natural --dry-run") == 0
    output = capsys.readouterr().err
    assert output.startswith("2 to do, 0 already recorded in runs\n")
    assert "about 4 s in all" in output
    assert "is for a GPU" not in output
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE, RANK, "),
        (
            {"RANK": "first", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "RANK are missing or no numbers",
        ),
    ],
)
def test_half_of_torchrun_s_variables_is_one_line(
    variables: dict[str, str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in ({"WORLD_SIZE": "2"} | variables).items():
        monkeypatch.setenv(name, value)
    assert exit_code(f"{RUN} natural --dry-run") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: WORLD_SIZE=")
    assert named in last


@pytest.mark.parametrize(
    "error",
    [RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
     torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), MemoryError()],
)  # fmt: skip
def test_too_little_memory_names_the_option(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("attacks.evaluate", fail)
    assert exit_code(f"{EVALUATE} net.pt --batch-size 9999") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: out of memory: a --batch-size below 9999 needs less"
    error = RuntimeError("another fault")
    with pytest.raises(RuntimeError, match="another fault"):
        cli.main(f"{EVALUATE} net.pt".split())


def unreachable(*_: object, **__: object) -> None:
    """Fail as a look-up without a network does."""
    raise OSError("Name or service not known")


def test_a_dry_run_fetches_nothing_and_warns_of_days(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    monkeypatch.setattr(
        "bench.execution.grid.run.estimate_costs",
        lambda todo, *_: [Cost(5e5, 4e5, 1.0)] * len(todo),
    )
    before = sorted(Path().rglob("*"))
    assert exit_code("run --method gacd --suite cifar --dry-run --device cpu") == 0
    output = capsys.readouterr().err
    assert "cifar10 is not under data: a run fetches it, 170,498,071 bytes\n" in output
    assert "cifar100 is not under data: a run fetches it, 169,001,437 bytes\n" in output
    assert "cifar is for a GPU: about 62 days on this CPU (" in output
    assert "for a CPU there are digits (minutes) and cifar-mini (half an hour)" in output
    assert exit_code("run --method gacd --suite cifar -q --dry-run --device cpu") == 0
    quiet = capsys.readouterr().err
    assert "6 to do" in quiet
    assert "is for a GPU" not in quiet
    assert sorted(Path().rglob("*")) == before


def test_no_network_names_the_files_to_provide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    assert exit_code("run --method gacd --suite cifar") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: cifar10 cannot be downloaded (")
    assert "put the folder cifar-10-batches-py (data_batch_1, " in last
    assert "into 'data', or run `python -m bench data import cifar10 FILE_OR_FOLDER`" in last


def test_eps_zero_is_clean_and_a_large_batch_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    words = "evaluate --arch resnet8-w4 --dataset digits --checkpoint net.pt"
    assert exit_code(f"{words} --eps 0 --batch-size 9999") == 0
    values = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(values) == 7
    assert len(set(values)) == 1


def test_a_result_as_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(f"{EVALUATE} net.pt --limit-test 20 --seed 7 --json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sha256"] == sha256_of_file(Path("net.pt"))
    expected = {"checkpoint": "net.pt", "norm": "Linf", "eps": 0.15, "dataset": "digits",
                "arch": "resnet8-w4", "seed": 7, "n": 20}  # fmt: skip
    assert expected.items() <= document.items()
    assert set(document["accuracy"]) == {"clean", "fgsm", "worst"}
    assert document["accuracy"]["worst"] <= document["accuracy"]["clean"] <= 1
    assert document["cost"]["fgsm"]["forwards"] > 0
    assert isinstance(document["flags"], dict)


@pytest.mark.parametrize("words", ["--version", "run --version", "teacher train --version"])
def test_every_command_says_the_version(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(words) == 0
    assert capsys.readouterr().out == f"{bench.__version__}\n"


@pytest.mark.parametrize("words", ["", "--help", "teacher --help", "data -h"])
def test_help(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(words) == 0
    assert "usage: python -m bench" in capsys.readouterr().out


def test_help_of_a_method_lists_its_switches(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("run --method gacd --help") == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--estimator", "--lambda-con", "--two-stage", "A7"))
