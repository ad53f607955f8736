"""The one reader of records: what is damaged is named and left out, and the pages are built."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from record_store import Records

import leaderboards
from leaderboards.read import records
from leaderboards.read.records import StoreError, collect, read_record
from leaderboards.schema.record import RecordError

Plant = Callable[[Path, bytes], object]


@pytest.fixture
def tracked(tmp_path: Path) -> Records:
    """Return a folder with one sound record."""
    tracked = Records(tmp_path / "records")
    tracked.run("rslad", 0.5, name="good.json", metrics={"test/clean": 0.9})
    return tracked


def write(change: Callable[[bytes], bytes]) -> Plant:
    """Return a function that writes the content of another record, changed."""
    return lambda path, content: path.write_bytes(change(content))


def put(*steps: str, value: Any) -> Plant:
    """Return a function that writes a record with another value."""

    def change(content: bytes) -> bytes:
        document = inner = json.loads(content)
        for step in steps[:-1]:
            inner = inner[step]
        inner[steps[-1]] = value
        return json.dumps(document).encode()

    return write(change)


def link_in_a_circle(path: Path, _: bytes) -> None:
    path.symlink_to("other.json")
    path.with_name("other.json").symlink_to(path.name)


PLANTED: dict[str, tuple[Plant, str]] = {
    "empty": (write(lambda _: b""), "Invalid JSON: EOF"),
    "no JSON": (write(lambda _: b"hello"), "Invalid JSON: "),
    "truncated": (write(lambda content: content[:-40]), "Invalid JSON: EOF"),
    "a list": (write(lambda content: b"[" + content + b"]"), "Input should be an object"),
    "not UTF-8": (write(lambda content: content.replace(b"ard", b"\xff")), "Invalid JSON: "),
    "UTF-16": (write(lambda content: content.decode().encode("utf-16")), "Invalid JSON: "),
    "huge": (write(lambda content: content + b" " * 1_000_000), "larger than 1,000,000 bytes"),
    "infinite": (
        write(
            lambda content: content.replace(b'"environment": {}', b'"environment": {"a": 1e999}')
        ),
        "Out of range float values are not JSON compliant",
    ),
    "infinite metric": (
        write(lambda content: content.replace(b'"test/n": 360.0', b'"test/n": 1e999')),
        "metrics.test/n: Input should be a finite number",
    ),
    "a date beyond all": (put("start_time", value=9 * 10**18), "start_time: Input should be less"),
    "newer schema": (
        put("schema", "version", value=4),
        "of schema version 4, this program reads 1 to 3",
    ),
    "flags": (put("tags", "flags", value='{"a": 1'), "tags.flags: not a JSON object of texts"),
    "no method": (put("spec", "method", value=None), "spec.method: Input should be a valid string"),
    "no suite": (put("spec", "suite", value="mine"), "spec.suite: String should match pattern"),
    "unreadable": (lambda path, _: path.symlink_to("/proc/self/mem"), ""),
    "a folder": (lambda path, _: path.mkdir(), "no regular file"),
    "a pipe": (lambda path, _: os.mkfifo(path), "no regular file"),
    "a device": (lambda path, _: path.symlink_to(os.devnull), "no regular file"),
    "a dead link": (lambda path, _: path.symlink_to("none"), "No such file or directory"),
    "a circle": (link_in_a_circle, "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_no_record_is_left_out_and_named(
    name: str, tracked: Records, tmp_path: Path
) -> None:
    plant, reason = PLANTED[name]
    plant(tracked.folder / "bad.json", tracked.make("ard", 0.4).to_json().encode())
    runs = collect(tracked.folder)
    assert list(runs["method"]) == ["rslad"]
    line, *others = runs.attrs["problems"]
    assert line.startswith(f"bad.json is left out: {reason}")
    assert line.isprintable()
    assert len(others) == (name == "a circle")
    leaderboards.write(tracked.folder, tmp_path / "out")
    assert "bad.json is left out" in (tmp_path / "out" / "index.html").read_text()


def test_a_file_without_permission_is_left_out(
    tracked: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one that disappears while it is read; another's owner and tests may be root."""
    tracked.run("ard", 0.4, name="bad.json")
    for error in (PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")):

        def refuse(path: Path, mode: str, error: OSError = error) -> Any:
            if path.name == "bad.json":
                raise error
            return open(path, mode)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            runs = collect(tracked.folder)
        assert list(runs["method"]) == ["rslad"]
        assert runs.attrs["problems"] == [f"bad.json is left out: {error.strerror}"]


def test_a_pipe_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    assert stat.S_ISFIFO((tmp_path / "x.json").stat().st_mode)
    with pytest.raises(RecordError, match="no regular file"):
        read_record(tmp_path / "x.json")


def test_a_file_that_is_being_written_is_ignored(tracked: Records) -> None:
    content = tracked.make("ard", 0.4).to_json()
    (tracked.folder / "next.json.4711.part").write_text(content[:100])
    (tracked.folder / "README.md").write_text("no record")
    runs = collect(tracked.folder)
    assert (list(runs["method"]), runs.attrs["problems"]) == (["rslad"], [])


def test_a_record_of_version_1_has_no_classes(tracked: Records) -> None:
    content = json.loads(tracked.make("ard", 0.4).to_json())
    del content["classes"]
    content["schema"]["version"] = 1
    (tracked.folder / "old.json").write_text(json.dumps(content))
    runs = collect(tracked.folder)
    assert list(runs["method"]) == ["rslad", "ard"]
    assert runs.attrs["problems"] == []
    assert runs["record"].iloc[1].accuracies_by_class == {}


@pytest.mark.parametrize("names", [("a.json", "b.json"), ("b.json", "a.json")])
def test_of_two_records_of_one_spec_the_newer_counts(
    names: tuple[str, str], tracked: Records
) -> None:
    older, newer = names
    tracked.run("ard", 0.4, name=older)
    tracked.run("ard", 0.6, name=newer)
    runs = collect(tracked.folder)
    assert list(runs["test/aa"]) == [0.5, 0.6]
    line = f"{older} is left out: {newer} is of the same spec and newer"
    assert runs.attrs["problems"] == [line]


@pytest.mark.parametrize("change", [{"method": "kd"}, {"seed": 1}, {"student": "net"}])
def test_one_network_is_not_two_runs(change: dict[str, Any], tracked: Records) -> None:
    """Other attacks on the same network make another run of it."""
    run: dict[str, Any] = {"method": "ard", "aa": 0.4, "checksums": {"best": "a" * 64}}
    tracked.run(**run, name="a.json")
    tracked.run(**run, name="b.json", params={"limit_aa": 100})
    tracked.run(**run | change, name="c.json")
    runs = collect(tracked.folder)
    assert len(runs) == 3
    line = "a.json has the same checkpoint, of another method, network or seed"
    assert runs.attrs["problems"] == [f"c.json is left out: {line}"]


def test_invisible_letters_are_shown_as_escapes(tracked: Records, tmp_path: Path) -> None:
    """In what a record says, and in the name of a file, which may be no text at all."""
    tracked.run("a\u202eb\n", 0.4, variant="\u200b", name="x.json", environment={"\u202e": "\x07"})
    os.rename(tracked.folder / "x.json", os.fsencode(tracked.folder) + b"/\xff.json")
    (tracked.folder / "\u202ex.json").write_text("{")
    runs = collect(tracked.folder)
    assert set(runs["method"]) == {"rslad", r"a\u202eb\n"}
    assert r"\u200b" in set(runs["variant"])
    leaderboards.write(tracked.folder, tmp_path / "out")
    for path in tmp_path.glob("out/**/*.html"):
        assert not set("\u202e\u200b\x07") & set(path.read_text()), path.name


def test_texts_like_formulas_and_tiny_numbers(tracked: Records, tmp_path: Path) -> None:
    curves = {"train/ce": [(0, 1e-310), (1, 1e300)]}
    tracked.run("ard", 0.4, variant="=1+1", metrics={"cost/x": 1e-310}, curves=curves)
    leaderboards.write(tracked.folder, tmp_path / "out")
    assert "'=1+1" in (tmp_path / "out" / "leaderboard.csv").read_text()


def test_the_last_point_of_a_curve_is_in_the_frame_and_its_gaps_stay(tracked: Records) -> None:
    curves = {"train/ce": [(0, 2.0), (1, 1.0), (10, 3.0)], "val/robust": [(0, 0.4)], "lr": []}
    tracked.run("ard", 0.4, curves=curves)
    runs = collect(tracked.folder)
    assert runs["val/robust"].iloc[1] == 0.4
    assert "train/ce" not in runs
    assert runs["record"].iloc[1].curves == {
        "train/ce": ((0, 1, 10), (2.0, 1.0, 3.0)),
        "val/robust": ((0,), (0.4,)),
        "lr": ((), ()),
    }


def test_an_empty_folder_is_no_error_and_a_missing_one_is(tmp_path: Path) -> None:
    runs = collect(tmp_path)
    assert runs.empty
    assert runs.attrs["problems"] == []
    for path in (tmp_path / "none", tmp_path / ("x" * 5000)):
        with pytest.raises(StoreError, match="there is no folder") as error:
            collect(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "none").exists()


def test_a_folder_with_nothing_but_damage_gives_pages(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    leaderboards.write(tmp_path, tmp_path / "out")
    text = (tmp_path / "out" / "index.html").read_text()
    assert "bad.json is left out" in text


def test_the_limit_of_a_file_holds(tracked: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tracked.folder / "good.json"
    for limit, fits in ((path.stat().st_size, True), (path.stat().st_size - 1, False)):
        monkeypatch.setattr(records, "MAX_BYTES", limit)
        assert len(collect(tracked.folder)) == fits
