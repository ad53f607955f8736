"""Files that a crash cannot leave half written, and their hashes."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import stat
import tempfile
import tomllib
import uuid
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from bench.system.errors import BenchError

MAX_CONFIG_BYTES = 20_000  # dotted keys of a much larger TOML file would be parsed for minutes
MOST_LEVELS = 20  # of tables inside each other
TOO_DEEP = "its tables are nested too deeply"


def file_mode(path: Path) -> int:
    """Return the mode of a file or folder, for `stat.S_ISREG` and its like; 0 if there is none.

    Raise OSError for a name that no file can have: since Python 3.14 `Path.is_file` only says no.
    """
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise


def check_regular(path: Path) -> None:
    """Raise OSError for a folder, and for a device or a pipe, which would be read for ever.

    Where nothing is, opening it fails.
    """
    mode = file_mode(path)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if mode and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))


def check_writable(folder: Path) -> None:
    """Make a folder if there is none. Raise BenchError unless files can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BenchError(f"cannot write to {str(folder)!r}: {error.strerror}") from error


def read_config(path: Path) -> str:
    """Return the text of a configuration: a regular file of at most MAX_CONFIG_BYTES.

    Raise OSError for anything else, ValueError for text that is not UTF-8.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_CONFIG_BYTES:,} bytes")
    return content.decode()


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file. Raise OSError as `read_config`, ValueError for no TOML."""
    return parse_tables(tomllib.loads, read_config(path))


def parse_tables(parse: Callable[[str], Any], text: str) -> dict[str, Any]:
    """Return the tables in a text. Raise ValueError for none, or for too many inside each other."""
    try:
        content = parse(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    if not isinstance(content, dict):
        raise ValueError("it is no table")
    level: list[Any] = [content]
    # Dotted keys nest tables without recursion; what works on them is recursive.
    for _ in range(MOST_LEVELS):
        tables = [value.values() if isinstance(value, dict) else value for value in level]
        level = [entry for entry in chain(*tables) if isinstance(entry, (dict, list))]
        if not level:
            return content
    raise ValueError(TOO_DEEP)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file of which readers see the old content or the new one, never a part.

    A process killed at any moment leaves one of the two, and a part that the next writer removes.
    Raise OSError if it cannot be written.
    """
    remove_parts(path)
    part, file = open_part(path)
    try:
        with file:
            file.write(content)
            file.flush()
            # The content must be on disk before it gets the name: a power cut may come between.
            os.fsync(file.fileno())
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def open_part(path: Path) -> tuple[Path, BinaryIO]:
    """Return a new file beside a path, and open: it is locked while its writer lives."""
    while True:
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        file = part.open("wb")
        # A file system without locks keeps the parts of killed writers.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # Another writer may have taken it for a dead one's before it was locked.
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()


def remove_parts(path: Path) -> None:
    """Remove the parts that killed writers of a file left beside it."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with suppress(OSError), part.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def save_file(path: Path, content: bytes) -> None:
    """Write a file atomically, and its folder if there is none. Raise BenchError if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise BenchError(f"cannot write to {str(path.parent)!r}: {error.strerror}") from error


def sha256_of_file(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5_of_file(path: Path) -> str:
    """Return the hex digest by which official files are known; it keeps no secret."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
