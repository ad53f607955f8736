"""Command lines that cannot work: one line, exit code 1 or 2, nothing made, in seconds.

Those of `test_cli.py` are about the words of the messages; these have ended in tracebacks, hung,
been taken, or left a store behind.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import cli, datasets, models
from bench.models import checkpoint
from bench.system.errors import UsageError
from bench.system.words import LARGEST_COUNT, check_count, check_words, parse_real, parse_whole

MOST_SECONDS = 15.0
RUN = "run --method natural"
DRY = f"{RUN} --dry-run"
TUNE = "tune --method rslad --trials 1"
EVALUATE = "evaluate --arch resnet8-w4 --dataset digits --attacks fgsm --checkpoint"
MANY = 25 * "9"

NUMBERS = [
    (f"{DRY} --epochs {MANY}", "--epochs: 9"),
    (f"{DRY} --epochs 9999999", "--epochs 9999999: at least 1, at most 1,000,000"),
    (f"{DRY} --epochs=-3", "--epochs -3: at least 1"),
    (f"{DRY} --epochs \uff13", "--epochs: '\uff13' is no whole number"),
    (f"{DRY} --epochs \u0663", "--epochs: '\u0663' is no whole number"),
    (f"{DRY} --epochs 1_0", "--epochs: '1_0' is no whole number"),
    (f"{DRY} --epochs ' 3'", "--epochs: ' 3' is no whole number"),
    (f"{DRY} --epochs 3.0", "--epochs: '3.0' is no whole number"),
    (f"{DRY} --seeds {MANY}", f"--seeds '{MANY}': whole numbers with commas"),
    (f"{DRY} --seeds 9223372036854775808", "--seeds '9223372036854775808': whole numbers"),
    (f"{DRY} --seeds \u0661", "--seeds '\u0661': whole numbers"),
    (f"{DRY} --workers {MANY}", "--workers: 9"),
    (f"{DRY} --workers 0", "--workers 0: at least 1"),
    (f"{DRY} --workers \uff12", "--workers: '\uff12' is no whole number"),
    (f"{DRY} --tuned {MANY}", "--tuned: 9"),
    (f"{DRY} --awp \uff10", "--awp: '\uff10' is no finite number"),
    (f"{DRY} --lr 1e999", "--lr: '1e999' is no finite number"),
    (f"{DRY} --lr inf", "--lr: 'inf' is no finite number"),
    ("run --method gacd --dry-run --bank 9999999999999999999", "--bank: 9"),
    ("tune --method rslad --dry-run --trials 99999999", "--trials 99999999: at least 1, at most"),
    ("tune --method rslad --dry-run --workers=-1", "--workers -1: at least 1"),
    ("tune --method rslad --dry-run --epochs 99999999", "--epochs 99999999: at least 1"),
    (
        "tune --method rslad --dry-run --range alpha=\uff10.1:1",
        "--range alpha=\uff10.1:1: '\uff10.1' is no",
    ),
    ("tune --method rslad --dry-run --range lr=nan:1", "--range lr=nan:1: 'nan' is no finite"),
    (f"{EVALUATE} net.pt --mean nan --std 1", "--mean"),
    (f"{EVALUATE} net.pt --eps nan", "--eps: 'nan' is no finite number"),
    (f"{EVALUATE} net.pt --batch-size {MANY}", "--batch-size: 9"),
    ("ui --port \uff18\uff10", "--port: '\uff18\uff10' is no whole number"),
    ("slices run out --minutes nan -- --method natural", "--minutes: 'nan' is no finite number"),
    (
        "teacher import mine\uff14 net.pt --arch resnet8-w4 --dataset digits",
        "teacher name 'mine\uff14'",
    ),
    (f"{DRY} --student resnet8-w\uff14", "unknown model 'resnet8-w\uff14'"),
    ("list folder:empty@\uff16\uff14", "nothing is called 'folder:empty@\uff16\uff14'"),
    ("slices pack out --python \uff13.12", "--python '\uff13.12': a version such as 3.12"),
]
DEVICES = [
    (f"{command} --device {device}", f"--device {device}: there is no such device here")
    for device in ("meta", "hpu", "privateuseone", "cpu:99", "cpu:0", "cuda:999", "xla", "CPU")
    for command in (RUN, "doctor")
]
DEVICES += [
    (f"{EVALUATE} net.pt --device meta", "--device meta"),
    ("teacher train --device hpu", "--device hpu"),
    (f"{TUNE} --device privateuseone", "--device privateuseone"),
    ("analyze --device meta", "--device meta"),
    ("slices run out --minutes 1 -- --method natural --device meta", "--device meta"),
]
STORAGES = [
    (f"{TUNE} --storage mysql://x", "mysql://x needs MySQLdb, which is not installed"),
    (f"{TUNE} --storage oracle://u:secret@x", "oracle://x needs oracledb, which is not installed"),
    (f"{TUNE} --storage foo://x", "the storage foo://x cannot be used"),
    (f"{TUNE} --storage sqlite+foo:///x", "the storage sqlite+foo:///x cannot be used"),
    (f"{TUNE} --storage sqlite://x", "the storage sqlite://x cannot be used"),
    (f"{TUNE} --storage sqlite:////proc/x", "cannot write to '/proc'"),
    (f"{TUNE} --storage sqlite:////dev/full", "no regular file: '/dev/full'"),
    (f"{TUNE} --storage sqlite:///pipe", "no regular file: 'pipe'"),
    (f"{TUNE} --storage sqlite:///empty", "Is a directory: 'empty'"),
    (f"{TUNE} --storage sqlite:///file/x.db", "cannot write to 'file'"),
    (f"{TUNE} --storage /proc/x", "journal files are no longer used"),
]
# To open one of these would wait, or read for ever.
NO_FILES = [
    (f"data import cifar10 {path}", f"'{path}' is neither a folder nor a readable tar archive")
    for path in ("/dev/zero", "/dev/urandom", "pipe", "nothing")
]
NO_FILES += [
    (f"{EVALUATE} {path}", f"'{path}' cannot be read: no regular file")
    for path in ("/dev/zero", "/dev/stdin", "pipe")
]
NO_FILES += [
    (f"{EVALUATE} empty", "'empty' cannot be read: Is a directory"),
    (f"{EVALUATE} net.pt --images pipe", "'pipe': no regular file"),
    (f"{EVALUATE} net.pt --images empty", "'empty': Is a directory"),
    (f"{EVALUATE} net.pt --out pipe", "--out 'pipe' exists and holds no verdicts"),
    (f"{EVALUATE} net.pt --out empty", "--out 'empty' exists and holds no verdicts"),
    ("teacher import mine pipe --arch resnet8-w4 --dataset digits", "no regular file"),
    (f"{RUN} --config pipe", "--config 'pipe': no regular file"),
    (f"{RUN} --config deep.toml", "--config 'deep.toml' is no TOML file: its tables are nested"),
    (f"{RUN} --suite pipe.toml", "--suite 'pipe.toml': no regular file"),
    (f"{RUN} --suite deep.toml", "--suite 'deep.toml': no TOML file: its tables are nested"),
    ("slices pack out --have pipe", "'pipe': no regular file"),
    ("slices pack out --have /dev/zero", "'/dev/zero': no regular file"),
    ("import pipe", "pipe: no regular file"),
    ("import /dev/zero", "/dev/zero: no regular file"),
]
NO_TRACES = [
    (f"{RUN} --limit-train 0", "a train limit of 0 is out of range"),
    (f"{RUN} --limit-train=-5", "a train limit of -5 is out of range"),
    (f"{RUN} --limit-train 10", "a batch of 64 is larger than the 10 training images"),
    (f"{RUN} --limit-test 9999", "a test limit of 9,999 is out of range"),
    ("teacher train --limit-train 0", "a train limit of 0 is out of range"),
    (f"{TUNE} --limit-train 0", "a train limit of 0 is out of range"),
    ("slices run out --minutes 1 -- --method natural --limit-train 0", "a train limit of 0"),
    ("slices run out --minutes 1 -- --method nobody", "unknown method 'nobody'"),
    ("slices pack out --dataset nothing", "unknown dataset 'nothing'"),
    ("slices pack out --have nothing", "'nothing': No such file"),
    ("import nothing.json", "nothing.json: No such file"),
    ("import file", "file: Invalid JSON"),
    ("import object.json", "object.json: schema: Field required"),
    ("import empty", "no record, a file NAME.json, in empty"),
    ("import net.pt", "net.pt: Invalid JSON"),
    ("import", "missing: FILE-OR-DIR"),
    ("export nothing", "nothing: no finished run"),
    ("export --suite digits", "no record of 'digits'"),
    ("export --from-mlflow", "nothing is recorded in 'runs'"),
    ("leaderboard --store /dev/null", "--store '/dev/null': a folder"),
    ("leaderboard --store pipe", "--store 'pipe': a folder"),
    ("leaderboard --suite digits@x", "--suite 'digits@x': 'x' is no version of 'digits'"),
    ("leaderboard --suite digits@", "--suite 'digits@': '' is no version of 'digits'"),
    ("leaderboard --suite digits@\uff13", "--suite 'digits@\uff13': '\uff13' is no version"),
    ("leaderboard --suite digits@99", "no record of digits@99"),
    ("leaderboard --suite mine-0123abcd", "no record of mine-0123abcd"),
    ("doctor --store /dev/null", "--store '/dev/null': a folder"),
    ("show --store /dev/null", "--store '/dev/null': a folder"),
    (f"{RUN} --store /dev/null", "--store '/dev/null': a folder"),
    (f"{RUN} --store pipe", "--store 'pipe': a folder"),
    (f"{RUN} --store 'ru\nns'", r"--store: 'ru\nns' has a line break"),
    (f"{RUN} '--store=ru\nns'", r"'--store=ru\nns' has a line break"),
    (f"{RUN} '--sto\nre' x", r"'--sto\nre' has a line break"),
    ("list '\x1b[31mgacd'", r"'\x1b[31mgacd' has a line break or another control character"),
    ("list '\u2028'", r"'\u2028' has a line break"),
]
MESSAGES = [
    (f"{RUN} 1", "unexpected argument '1'"),
    (f"{RUN} 1 2", "unexpected argument '1'"),
    ("show a b", "unexpected argument 'b'"),
    ("data fetch", "missing: NAME"),
    ("data import", "missing: NAME, FILE-OR-DIR"),
    ("teacher import", "missing: NAME, FILE"),
    ("slices pack", "missing: DIR"),
    ("slices run", "missing: DIR, --minutes"),
    ("new-method", "missing: NAME"),
    ("model", "missing: RUN|ROW, --out"),
    ("evaluate", "missing: --checkpoint"),
    ("tune", "missing: --method"),
    ("export --hub", "--hub needs a value"),
]
BAD = [*NUMBERS, *DEVICES, *STORAGES, *NO_FILES, *NO_TRACES, *MESSAGES]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder with a checkpoint, a pipe and files of other kinds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    torch.manual_seed(0)
    state = models.build("resnet8-w4", datasets.DIGITS).state_dict()
    checkpoint.save(tmp_path / "net.pt", {"state_dict": state})
    (tmp_path / "file").write_text("")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "deep.toml").write_text(f"a = {5000 * '['}{5000 * ']'}\n")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.toml")
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for name, handler in handlers.items():
        signal.signal(name, handler)


def check(code: object, error: str, message: str, before: list[Path]) -> None:
    lines = error.strip().splitlines()
    assert code in (1, 2)
    # A warning may come first.
    assert [line for line in lines if not line.startswith("warning: ")] == [lines[-1]]
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert "---" not in lines[-1]
    assert "missing:  " not in lines[-1]
    assert sorted(Path().rglob("*")) == before


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("line", "message"), BAD, ids=[repr(line) for line, _ in BAD])
def test_a_bad_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Other programs may have the processor. What waits without end is ended by pytest.
    before, start = sorted(Path().rglob("*")), time.process_time()
    with pytest.raises(SystemExit) as stop:
        cli.main(shlex.split(line))
    assert time.process_time() - start < MOST_SECONDS
    check(stop.value.code, capsys.readouterr().err, message, before)


@pytest.mark.parametrize(
    ("line", "message"),
    [DEVICES[0], STORAGES[0], NO_FILES[0], NO_TRACES[0]],
    ids=lambda text: text[:40],
)
def test_a_bad_line_of_a_process(line: str, message: str) -> None:
    """As above, with what libraries print on their own."""
    before = sorted(Path().rglob("*"))
    command = [sys.executable, "-m", "bench", *shlex.split(line)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300)
    check(done.returncode, done.stderr, message, before)


@pytest.mark.parametrize("command", [RUN, "teacher train", TUNE])
def test_data_that_cannot_be_had_leave_nothing(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    before = sorted(Path().rglob("*"))
    for root in ("data", "empty"):
        with pytest.raises(SystemExit) as stop:
            cli.main(shlex.split(f"{command} --suite cifar-mini --data-root {root}"))
        assert stop.value.code == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: cifar10 cannot be downloaded (")
        assert sorted(Path().rglob("*")) == before


def test_whole_numbers() -> None:
    assert [*map(parse_whole, ["0", "+7", "-1", "007", str(2**63 - 1)])] == [0, 7, -1, 7, 2**63 - 1]
    for text in ("", "-", "1.0", "1e3", "0x1", "²", "\u09e9", str(2**63), 5000 * "9"):
        with pytest.raises(ValueError, match=r"whole number|too large"):
            parse_whole(text)


def test_real_numbers() -> None:
    assert [*map(parse_real, ["1", "-.5", "2.", "1e-3", "+1E2"])] == [1, -0.5, 2, 0.001, 100]
    for text in ("", ".", "e1", "nan", "-inf", "1e999", "1_0", "½", "0x1p3"):
        with pytest.raises(ValueError, match="no finite number"):
            parse_real(text)


def test_counts_and_words() -> None:
    check_count("--epochs", LARGEST_COUNT)
    check_count("--tuned", 0, least=0)
    for count in (0, LARGEST_COUNT + 1):
        with pytest.raises(UsageError, match=r"^--epochs"):
            check_count("--epochs", count)
    check_words(["--store", "żółw 鳥\xa0/x\udcff"])
    for letter in ("\n", "\t", "\x00", "\x1b", "\x7f", "\x85", "\u2028", "\u2029"):
        with pytest.raises(UsageError, match=r"^--store: "):
            check_words(["--store", f"a{letter}b"])
