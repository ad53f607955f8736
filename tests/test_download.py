"""Downloads from a local server that is slow, breaks off, trickles, or has something else."""

from __future__ import annotations

import hashlib
import http.server
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.datasets.dataset import Download
from bench.datasets.files import download as downloading
from bench.datasets.files.download import DownloadError, download

CONTENT = bytes(range(256)) * 4096
STEP = 1 << 14


@dataclass
class Behaviour:
    """What a server does.

    seconds: between steps, of so many bytes. cut: bytes after which a connection ends. silence:
    seconds before one that brings nothing.
    """

    content: bytes = CONTENT
    seconds: float = 0.0
    step: int = STEP
    cut: int = 0
    status: int = 200
    ranges: bool = True
    length: bool = True
    silence: float = 0.0
    requests: list[str] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        does = self.behaviour
        wanted = self.headers.get("Range", "")
        does.requests.append(wanted)
        if does.silence:
            time.sleep(does.silence)
            return
        start = 0
        if does.status != 200:
            self.send_error(does.status)
            return
        if wanted and does.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        if does.length:
            self.send_header("Content-Length", str(len(does.content) - start))
        self.end_headers()
        self.send_body(does.content[start:])

    def send_body(self, body: bytes) -> None:
        does = self.behaviour
        body = body[: does.cut or None]
        try:
            for position in range(0, len(body), does.step):
                self.wfile.write(body[position : position + does.step])
                time.sleep(does.seconds)
        except ConnectionError:
            pass  # The client has left.


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[str]:
    """Yield the address of a file on a server in a thread."""
    handler = type("Handler", (Handler,), {"behaviour": behaviour})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/data.bin"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def file_at(*urls: str, content: bytes = CONTENT) -> Download:
    return Download(urls, hashlib.md5(content).hexdigest(), len(content))


def test_a_file_arrives_and_is_checked(tmp_path: Path) -> None:
    with serve(Behaviour()) as url:
        download(file_at(url), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_a_break_goes_on_where_it_was(tmp_path: Path) -> None:
    behaviour = Behaviour(cut=400_000)
    with serve(behaviour) as url:
        download(file_at(url), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert behaviour.requests == ["", "bytes=400000-", "bytes=800000-"]


def test_an_interrupted_download_goes_on_with_the_next_command(tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    behaviour = Behaviour()
    with serve(behaviour) as url:
        download(file_at(url), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert behaviour.requests == ["bytes=1000-"]


def test_a_beginning_of_something_else_is_dropped(tmp_path: Path) -> None:
    page, behaviour = Behaviour(b"<html>moved</html>", length=False), Behaviour()
    with serve(page) as moved, serve(behaviour) as url:
        download(file_at(moved, url), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert behaviour.requests == ["bytes=18-", ""]


def test_a_file_without_end_is_left(tmp_path: Path) -> None:
    endless = Behaviour(3 * CONTENT, length=False)
    with serve(endless) as url, pytest.raises(DownloadError, match="has md5"):
        download(file_at(url), tmp_path / "data.bin")
    assert not [*tmp_path.iterdir()]


def test_a_server_that_cannot_continue_begins_again(tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    with serve(Behaviour(ranges=False)) as url:
        download(file_at(url), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_beginning_again_is_no_trickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "WINDOW", 0.2)
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:-1000])
    with serve(Behaviour(ranges=False, seconds=0.01)) as url:
        download(file_at(url), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_server_that_cannot_continue_and_breaks_off_is_left(tmp_path: Path) -> None:
    behaviour = Behaviour(ranges=False, cut=400_000)
    with serve(behaviour) as first, serve(Behaviour()) as good:
        download(file_at(first, good), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert len(behaviour.requests) == 2


@pytest.mark.parametrize("length", [True, False])
def test_what_is_no_such_file_is_left_for_the_next_address(tmp_path: Path, length: bool) -> None:
    """A page of HTML, a file of the right size and another content, an error, nothing at all."""
    page = Behaviour(b"<html>moved</html>", length=length)
    other = Behaviour(CONTENT[::-1], length=length)
    absent = Behaviour(status=404)
    with serve(page) as a, serve(other) as b, serve(absent) as c, serve(Behaviour()) as good:
        download(file_at(a, b, c, "http://127.0.0.1:9/closed", good), tmp_path / "data.bin")
        assert (tmp_path / "data.bin").read_bytes() == CONTENT
        with pytest.raises(DownloadError) as caught:
            download(file_at(a, b, c, "http://127.0.0.1:9/closed"), tmp_path / "more.bin")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("another file, of 18 bytes" if length else "ended early", "has md5", "HTTP 404"):
        assert part in message
    assert "refused" in message


def test_silence_is_a_break(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "SILENCE", 0.2)
    with serve(Behaviour(silence=1)) as silent, pytest.raises(DownloadError, match="timed out"):
        download(file_at(silent), tmp_path / "data.bin")


def test_a_trickle_is_told_from_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Few bytes now and then are no silence. What came is kept for the next address."""
    monkeypatch.setattr(downloading, "WINDOW", 0.3)
    monkeypatch.setattr(logging.getLogger("bench"), "propagate", True)
    trickle, good = Behaviour(seconds=0.05, step=100), Behaviour()
    with serve(trickle) as slow, serve(good) as fast:
        with pytest.raises(DownloadError, match=r"a trickle of [12]\.\d kB/s, .* left"):
            download(file_at(slow), tmp_path / "data.bin")
        download(file_at(slow, fast), tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    (requested,) = good.requests
    assert requested != "bytes=0-"
    assert trickle.requests[1].startswith("bytes=")


def test_breaks_do_not_hide_a_trickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "WINDOW", 0.3)
    behaviour = Behaviour(seconds=0.05, step=100, cut=100)
    with serve(behaviour) as slow, pytest.raises(DownloadError, match="a trickle"):
        download(file_at(slow), tmp_path / "data.bin")
    assert len(behaviour.requests) > 1


def test_a_slow_download_says_how_fast_and_how_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(downloading, "WINDOW", 0.3)
    monkeypatch.setattr(logging.getLogger("bench"), "propagate", True)
    with serve(Behaviour(seconds=0.02)) as url, caplog.at_level(logging.INFO):
        download(file_at(url), tmp_path / "data.bin")
    assert caplog.messages
    for message in caplog.messages:
        assert message.startswith("data.bin: ")
        assert " MB/s, " in message
        assert message.endswith(" s left")


def test_a_full_disk_is_no_fault_of_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Behaviour()) as url, pytest.raises(OSError, match="No such file"):
        download(file_at(url), tmp_path / "nowhere" / "data.bin")
