"""Download, import and verify the official files."""

from __future__ import annotations

import lzma
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from bench.datasets import get
from bench.datasets.loading import load_data
from bench.datasets.official_files import damage_in, file_hashes, first_line, official_class
from bench.system.errors import BenchError, UsageError
from bench.system.files import save_file
from bench.system.parts import unpack_member

# Seconds without a byte before a download counts as failed.
DOWNLOAD_TIMEOUT = 10.0
DOWNLOAD_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, RuntimeError)
ARCHIVE_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)


def verify_data(name: str, root: str | Path) -> str:
    """Return one line with counts and sha256. Raise BenchError as `load_data` does."""
    data = load_data(name, root)
    counts = f"{len(data.train):,} train, {len(data.val):,} validation, {len(data.test):,} test"
    return f"{name}: {counts}, {'x'.join(map(str, data.info.shape))}, sha256 {data.sha256}"


def is_missing(name: str, root: str | Path) -> bool:
    """Return whether the folder of the official files does not exist."""
    official = official_class(get(name))
    return official is not None and not (Path(root) / official.base_folder).is_dir()


def fetch_data(name: str, root: str | Path) -> str:
    """Download official files that are missing and return the line of `verify_data`.

    Raise BenchError, with the files and where to put them, if the network does not answer.
    """
    root = Path(root)
    official = official_class(get(name))
    if official is None or not damage_in(root / official.base_folder, official):
        return verify_data(name, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with socket_timeout(DOWNLOAD_TIMEOUT):
            official(root, download=True)
    except DOWNLOAD_ERRORS as error:
        files = ", ".join(file_hashes(official))
        raise BenchError(
            f"{name} cannot be downloaded ({first_line(error)}): put the folder"
            f" {official.base_folder} ({files}) into {str(root)!r},"
            f" or run `python -m bench data import {name} FILE_OR_FOLDER`"
        ) from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise BenchError(f"cannot write to {str(root)!r}: {reason}") from error
    return verify_data(name, root)


def import_data(name: str, source: str | Path, root: str | Path) -> str:
    """Copy official files of a folder or tar archive and return the line of `verify_data`.

    Raise BenchError, and copy nothing, unless every file has its official md5.
    """
    official = official_class(get(name))
    if official is None:
        raise UsageError(f"{name} comes with scikit-learn: there is nothing to import")
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpack_source(Path(source), Path(scratch))
        paths = [find_file(folder, file) for file in file_hashes(official)]
        parents = {path.parent for path in paths}
        if len(parents) == 1:
            folder = parents.pop()
        damage = damage_in(folder, official)
        if damage:
            raise BenchError(f"{str(source)!r} does not hold the official {name}: {damage}")
        for path in paths:
            save_file(Path(root) / official.base_folder / path.name, path.read_bytes())
    return verify_data(name, root)


def find_file(folder: Path, name: str) -> Path:
    """Return the first plain file called `name` below `folder`, or its path in `folder`."""
    for path in folder.rglob(name):
        if path.is_file():
            return path
    return folder / name


def unpack_source(source: Path, scratch: Path) -> Path:
    """Return a folder as it is, or `scratch` with the plain files of an archive, without links."""
    if source.is_dir():
        return source
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                unpack_member(archive, member, scratch)
    except ARCHIVE_ERRORS as error:
        reason = first_line(error)
        message = f"{str(source)!r} is neither a folder nor a readable tar archive: {reason}"
        raise BenchError(message) from error
    return scratch


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Limit how long a socket waits for a silent server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
