"""Download one file: from several addresses, going on after a break, given up if it trickles."""

from __future__ import annotations

import logging
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bench.datasets.dataset import Download
from bench.system import log
from bench.system.errors import one_line
from bench.system.files import md5_of_file
from bench.system.log import LOGGER
from bench.system.progress import format_duration

CHUNK = 1 << 16
SILENCE = 10.0  # seconds without a byte after which a connection counts as broken
# A slower address is left: CIFAR-10 would take five hours.
MIN_BYTES_PER_SECOND = 10_000
WINDOW = 20.0  # seconds over which a rate is measured, and between lines
NETWORK_ERRORS = (OSError, HTTPException)


class DownloadError(Exception):
    """No address has the file, or not in time. The message is one line."""


class Meter:
    """The rate of a download, shown on a terminal or in a line now and then.

    name: of the file. size, done: bytes of it and those that are here.
    """

    def __init__(self, name: str, size: int, done: int) -> None:
        self.name, self.size = name, size
        self.restart(done)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=log.console(),
            transient=True,
            disable=not log.has_live_line(),
        )
        self.task = self.bar.add_task(name, total=size, completed=done)

    def restart(self, done: int) -> None:
        """Measure from so many bytes on."""
        self.done = self.window_done = done
        self.window_start = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes. Raise DownloadError if a whole window was slow."""
        self.done += count
        self.bar.update(self.task, completed=self.done)
        seconds = time.monotonic() - self.window_start
        if seconds < WINDOW:
            return
        rate = (self.done - self.window_done) / seconds
        left = format_duration((self.size - self.done) / max(rate, 1e-3))
        if rate < MIN_BYTES_PER_SECOND:
            raise DownloadError(f"a trickle of {rate / 1e3:.1f} kB/s, {left} left")
        progress = f"{self.done / 1e6:,.0f} of {self.size / 1e6:,.0f} MB"
        level = logging.DEBUG if log.has_live_line() else logging.INFO
        LOGGER.log(level, f"{self.name}: {progress}, {rate / 1e6:.2g} MB/s, {left} left")
        self.restart(self.done)


def download(file: Download, target: Path) -> None:
    """Download a file from the first address that has it, and check its md5.

    What has come lies in `target` with ".part", where a later call goes on, from any address.
    Raise DownloadError with the reason of each address, OSError if the disk does not take it.
    """
    part = target.with_name(f"{target.name}.part")
    reasons = []
    for url in file.urls:
        continued = size_of(part) > 0
        try:
            receive(url, file, part)
            if continued and md5_of_file(part) != file.md5:
                # What lay there was the beginning of something else.
                part.unlink()
                receive(url, file, part)
            check_md5(part, file)
        except DownloadError as error:
            reasons.append(f"{urlsplit(url).netloc}: {error}")
            continue
        part.replace(target)
        return
    raise DownloadError("; ".join(reasons))


def receive(url: str, file: Download, part: Path) -> None:
    """Receive the bytes that are missing; a connection that brought some is made again."""
    meter = Meter(file.name, file.size, size_of(part))
    with meter.bar:
        while (start := size_of(part)) < file.size:
            reason = receive_some(url, file.size, part, meter)
            if size_of(part) <= start:
                raise DownloadError(reason)


def receive_some(url: str, size: int, part: Path, meter: Meter) -> str:
    """Append to `part` until the connection ends; return why it did."""
    start = size_of(part)
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=SILENCE)
    except HTTPError as error:
        return f"HTTP {error.code} {error.reason}"
    except URLError as error:
        return str(error.reason)
    except NETWORK_ERRORS as error:
        return one_line(error)
    with response:
        # A server that does not continue sends the file from its first byte.
        if start and response.status != 206:
            part.unlink()
            meter.restart(0)
            start = 0
        length = response.length
        if length is not None and start + length != size:
            return f"another file, of {start + length:,} bytes and not {size:,}"
        return append(response, part, meter)


def append(response: Any, part: Path, meter: Meter) -> str:
    """Append what a response brings to a file; return why it ended."""
    with part.open("ab") as output:
        while meter.done <= meter.size:
            try:
                # Not `read`, which waits for a whole chunk, however slowly it comes.
                chunk = response.read1(CHUNK)
            except NETWORK_ERRORS as error:
                return one_line(error)
            if not chunk:
                return "the connection ended early"
            output.write(chunk)
            meter.add(len(chunk))
    return "it is longer"


def check_md5(part: Path, file: Download) -> None:
    """Raise DownloadError and remove the file unless it has its md5."""
    digest = md5_of_file(part)
    if digest != file.md5:
        part.unlink()
        raise DownloadError(f"the content has md5 {digest} and not {file.md5}")


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 without one."""
    return path.stat().st_size if path.exists() else 0
