"""Download, import and verify the files of data sets."""

from __future__ import annotations

import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from bench.datasets import get
from bench.datasets.dataset import Dataset, Download, OfficialFiles, damage_in
from bench.datasets.files.download import DownloadError, download
from bench.datasets.files.official_files import damage_of, folder_of
from bench.datasets.files.pixels import import_pixels
from bench.datasets.loading import load_data
from bench.system.errors import BenchError, UsageError, one_line
from bench.system.files import check_regular, save_file
from bench.system.parts import unpack_member

LOCK = "download.lock"
ARCHIVE_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)


def verify_data(name: str, root: str | Path) -> str:
    """Return one line with counts and sha256. Raise BenchError as `load_data` does."""
    data = load_data(name, root)
    counts = f"{len(data.train):,} train, {len(data.val):,} validation, {len(data.test):,} test"
    return f"{name}: {counts}, {'x'.join(map(str, data.info.shape))}, sha256 {data.sha256}"


def is_missing(name: str, root: str | Path) -> bool:
    """Return whether the folder of the official files does not exist."""
    info = get(name)
    return info.files() is not None and not folder_of(info, Path(root)).is_dir()


def download_size(name: str) -> str:
    """Return in words how much a download brings."""
    files = get(name).files()
    return f"{files.size if files else 0:,} bytes"


def fetch_data(name: str, root: str | Path) -> str:
    """Download official files that are missing and return the line of `verify_data`.

    Raise BenchError, with the files and where to put them, if no address has them.
    """
    root, info = Path(root), get(name).whole
    files = info.files()
    if files is None or not damage_of(info, root):
        return verify_data(name, root)
    is_new = not root.exists()
    try:
        (root / files.folder).mkdir(parents=True, exist_ok=True)
        # Processes of one grid may miss the same data.
        with FileLock(root / files.folder / LOCK):
            for file in files.downloads if damage_of(info, root) else ():
                fetch_file(info, files, file, root)
    except DownloadError as error:
        remove_unused(root / files.folder)
        if is_new:
            with suppress(OSError):
                root.rmdir()
        raise BenchError(
            f"{info.name} cannot be downloaded ({error}): put the folder"
            f" {files.folder} ({', '.join(files.hashes)}) into {str(root)!r},"
            f" or run `python -m bench data import {info.name} FILE_OR_FOLDER`"
        ) from error
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise BenchError(f"cannot write to {str(root)!r}: {reason}") from error
    return verify_data(name, root)


def remove_unused(folder: Path) -> None:
    """Remove a data set's folder that holds the lock of its download alone."""
    lock = folder / LOCK
    with suppress(OSError):
        if [*folder.iterdir()] == [lock]:
            lock.unlink()
            folder.rmdir()


def fetch_file(info: Dataset, files: OfficialFiles, file: Download, root: Path) -> None:
    """Download an official file, or an archive of them, into its place."""
    folder = root / files.folder
    if file.name in files.hashes:
        if damage_in(folder, {file.name: file.md5}):
            download(file, folder / file.name)
        return
    archive = root / file.name
    # A process may have been killed between download and unpacking.
    if damage_in(root, {file.name: file.md5}):
        download(file, archive)
    copy_official(info, archive, root)
    archive.unlink()


def import_data(name: str, source: str | Path, root: str | Path) -> str:
    """Copy official files of a folder or tar archive and return the line of `verify_data`.

    Parquet or PNG with the same pixels become one file of pixels. Raise BenchError, and copy
    nothing, unless every file has its official md5, or the pixels their official sha256.
    """
    info = get(name).whole
    if info.files() is None:
        raise UsageError(f"{info.name} comes with {info.source}: there is nothing to import")
    copy_official(info, Path(source), Path(root))
    return verify_data(name, root)


def copy_official(info: Dataset, source: Path, root: Path) -> None:
    """Copy the official files from a folder or an archive, or what has the same pixels."""
    files = info.files()
    assert files is not None
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpack_source(source, Path(scratch), files.hashes)
        paths = [find_file(folder, file) for file in files.hashes]
        parents = {path.parent for path in paths}
        if len(parents) == 1:
            folder = parents.pop()
        damage = damage_in(folder, files.hashes)
        has_official = any(path.is_file() for path in paths)
        if source.is_dir() and info.pixels_sha256 and not has_official:
            import_pixels(info, source, root / files.folder)
            return
        if damage:
            raise BenchError(f"{str(source)!r} does not hold the official {info.name}: {damage}")
        for path in paths:
            save_file(root / files.folder / path.name, path.read_bytes())


def find_file(folder: Path, name: str) -> Path:
    """Return the first plain file called `name` below `folder`, or its path in `folder`."""
    for path in folder.rglob(name):
        if path.is_file():
            return path
    return folder / name


def unpack_source(source: Path, scratch: Path, names: Collection[str]) -> Path:
    """Return a folder with the files of these names, without links.

    It is `source` itself, the folder of `source` if that has one of the names, or else `scratch`
    with the plain files of an archive.
    """
    if source.is_dir():
        return source
    if source.name in names:
        return source.parent
    try:
        check_regular(source)
        with tarfile.open(source) as archive:
            # An archive may hold much more, as STL-10's does.
            for member in (entry for entry in archive if Path(entry.name).name in names):
                unpack_member(archive, member, scratch)
    except ARCHIVE_ERRORS as error:
        reason = one_line(error, 160)
        message = f"{str(source)!r} is neither a folder nor a readable tar archive: {reason}"
        raise BenchError(message) from error
    return scratch
