"""What a run says while it works: progress, its level, and the log file of a command."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.datasets import DATASETS, loading
from bench.system import log, progress
from bench.system.errors import UsageError
from bench.system.log import LOGGER, RESULT
from bench.system.progress import ParallelProgress, Progress, format_duration
from bench.system.tables import format_table


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock of progress by the number in this list."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def command() -> Iterator[None]:
    with log.command_log("some command"):
        yield


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"),
     (172_799, "48.0 h"), (172_800, "2.0 days"), (2_678_400, "31 days"), (1e9, "11,574 days")],
)  # fmt: skip
def test_durations_go_up_to_days(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.usefixtures("command")
def test_a_line_every_twenty_seconds_says_where_the_run_is(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress({1: (100.0, 50.0), 2: (100.0, 50.0)}, 2) as shown:
        shown.start(1, "digits a", epochs=4)
        for step in range(40):
            if step == 20:
                measured = {"train/a": 0.5, "train/b": 1.0, "val/clean": 0.9, "val/robust": 0.0}
                shown.end_epoch({"epoch": 1, **measured})
            if step == 30:
                # An epoch without validation: the last values stay.
                shown.end_epoch({"epoch": 2, "train/a": 0.25, "train/b": 0.5})
            clock[0] += 1.0
            shown.tick("train", step + 1, 40)
        shown.checkpoint = "best"
        for done in range(3):
            clock[0] += 15.0
            shown.tick("aa fab-t", done, 4)
        shown.finish(1, "digits a", "clean 90.0")
    assert capsys.readouterr().err.splitlines() == [
        # Training is at 0.4 of its estimate: 19 of its 40 steps, 20 s of evaluation, 60 s after.
        "[1/2] epoch 3 of 4, loss 1.5, val clean 90.0, robust 0.0, 2 min left",
        "[1/2] evaluating best: aa fab-t 0 %, 80 s left",
        "[1/2] evaluating best: aa fab-t 50 %, 60 s left",
        "[1/2] digits a: clean 90.0 (85 s)",
    ]


@pytest.mark.usefixtures("command")
def test_an_estimate_that_was_exceeded_is_not_shown(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress({3: (0.0, 0.0)}, 7) as shown:
        shown.start(3, "evaluate")
        clock[0] = 21.0
        shown.tick("pgd20", 1, 2)
    assert capsys.readouterr().err == "[3/7] evaluating the network: pgd20 50 %\n"


@pytest.mark.usefixtures("command")
def test_parallel_runs_end_with_a_line_each(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    tally = ParallelProgress([1, 2])
    clock[0] = 10.0
    tally.finish(2, "digits b", "clean 90.0", succeeded=True)
    tally.finish(1, "digits a", "failed: out of luck", succeeded=False)
    assert capsys.readouterr().err.splitlines() == [
        "[2/2] digits b: clean 90.0 (1 of 2 done, about 10 s left in all)",
        "[1/2] digits a: failed: out of luck (all done in 10 s)",
    ]


@pytest.mark.usefixtures("command")
def test_the_time_left_of_parallel_runs_is_that_of_those_that_are_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher takes as long as four students, which share two workers."""
    seconds = {1: 60.0, 2: 10.0, 3: 10.0, 4: 10.0, 5: 10.0}
    tally = ParallelProgress(seconds, lambda numbers: sum(seconds[n] for n in numbers))
    clock[0] = 120.0
    tally.finish(1, "teacher", "clean 90.0", succeeded=True)
    assert "(1 of 5 done, about 80 s left in all)" in capsys.readouterr().err


@pytest.mark.usefixtures("command")
def test_no_time_left_is_shown_without_an_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    tally = ParallelProgress([1, 2], lambda numbers: 0.0)
    tally.finish(1, "digits a", "clean 90.0", succeeded=True)
    assert capsys.readouterr().err == "[1/2] digits a: clean 90.0 (1 of 2 done)\n"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ({"quiet": False, "verbose": False}, ["warning", "progress", "result", "error"]),
        ({"quiet": True, "verbose": False}, ["result", "error"]),
        ({"quiet": False, "verbose": True}, ["library", "warning", "progress", "detail", "result"]),
    ],
)
def test_verbosity_decides_what_the_terminal_shows(
    flags: dict[str, bool], shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is, the file has everything."""
    messages = ["library", "warning", "progress", "detail", "result", "error", "traceback"]
    with log.command_log("teacher train"):
        log.set_verbosity(**flags)
        log.open_log_file(tmp_path, "head")
        warnings.warn("library", stacklevel=1)
        LOGGER.warning("warning")
        LOGGER.info("progress")
        LOGGER.debug("detail")
        LOGGER.log(RESULT, "result")
        LOGGER.error("error")
        LOGGER.log(log.NOTE, "traceback")
    terminal = capsys.readouterr().err
    assert [text for text in messages if text in terminal][: len(shown)] == [
        text for text in messages if text in shown
    ]
    assert "traceback" not in terminal
    (path,) = (tmp_path / "logs").iterdir()
    assert path.name.endswith("-teacher-train.log")
    assert all(text in path.read_text() for text in [*messages, "head"])


def test_both_verbosities_are_refused() -> None:
    with pytest.raises(UsageError, match="--quiet and --verbose"):
        log.set_verbosity(quiet=True, verbose=True)


@pytest.mark.usefixtures("command")
def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """No markup, no emoji, no break of a long line."""
    text = "[red]100 % :smile: [/] " + "x" * 300
    LOGGER.info(text)
    assert capsys.readouterr().err == f"{text}\n"


def test_a_log_that_cannot_be_opened_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("")
    with log.command_log("run"):
        log.open_log_file(tmp_path, "head")
        LOGGER.info("progress")
        assert log.log_path() is None
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("warning: the log ")
    assert lines[1:] == ["progress"]


def test_a_full_disk_is_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with log.command_log("run"):
        log.add_file(Path("/dev/full"))
        LOGGER.info("first")
        LOGGER.info("second")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("warning: ")] == ["first", "second"]
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert warning.startswith("warning: the log /dev/full cannot be written: ")


def test_a_log_holds_no_password_and_the_traceback_of_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with log.command_log("run"):
            log.open_log_file(tmp_path, "tune --storage postgresql://me:secret@host/base")
            raise ValueError("out of luck")

    with pytest.raises(ValueError, match="luck"):
        fail()
    (path,) = (tmp_path / "logs").iterdir()
    text = path.read_text()
    assert "tune --storage postgresql://host/base" in text
    assert 'raise ValueError("out of luck")' in text
    assert not [entry for entry in LOGGER.handlers if isinstance(entry, log.OWN_HANDLERS)]


def test_a_worker_logs_to_the_file_of_its_parent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log.command_log("run"):
        log.set_verbosity(quiet=True, verbose=False)
        log.open_log_file(tmp_path, "head")
        settings, path = log.log_settings(), log.log_path()
    # As in a new process: none of the handlers is there.
    with log.command_log("worker"):
        LOGGER.removeHandler(log.terminal_handler())
        log.log_in_worker(settings)
        LOGGER.info("of a worker")
        LOGGER.error("an error")
    assert path
    assert path.read_text().endswith("ERROR an error\n")
    assert "INFO of a worker\n" in path.read_text()
    assert capsys.readouterr().err == "an error\n"


def test_a_library_s_use_prints_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert log.log_settings().level == logging.WARNING
    assert not log.has_live_line()
    LOGGER.info("progress")
    assert capsys.readouterr().err == ""


def test_tables_align_and_take_any_text() -> None:
    table = format_table(("method", "clean"), [("kd [bold]", "9.5"), ("a", "100.0")], numbers=1)
    assert table.splitlines() == ["method     clean", "kd [bold]    9.5", "a          100.0"]


def test_sizes_without_files_are_those_of_the_files() -> None:
    data = loading.load_data("digits", "")
    assert loading.split_sizes("digits", None, None) == (len(data.train), len(data.test))
    assert loading.split_sizes("cifar100", 100, None) == (100, 10_000)
    with pytest.raises(UsageError, match="a test limit of 10,001 is out of range"):
        loading.split_sizes("cifar10", None, 10_001)
    needs_files = [files for info in DATASETS.values() if (files := info.files())]
    assert all(files.size > 100_000_000 for files in needs_files)
    assert all(f"{info.num_test:,} test" in info.about for info in DATASETS.values())
