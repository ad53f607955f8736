"""Archives in parts with checksums, and how a bare machine unpacks a slice.

Standard library alone, except for the pixels of CIFAR: those take numpy and Pillow, as torchvision
does. `bench slices pack` puts a copy of this file beside the parts as unpack.py.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import IO, Any

SOURCE, DATA, WHEELS, STATE = "source", "data", "wheels", "state"  # archives
SITE = "site"  # the folder of the wheels that were installed
# A mosaic has 100 images in a row, of 3 x 32 x 32 bytes.
COLUMNS, CHANNELS, SIDE = 100, 3, 32


class PartsError(Exception):
    """Parts that cannot be joined. The message is one line."""


def listing(folder: Path, name: str) -> Path:
    """Return the file that lists the parts of an archive with their checksums, as sha256sum does.

    It is written last: an archive without it is not complete.
    """
    return folder / f"{name}.sha256"


def remove_parts(folder: Path, name: str) -> None:
    """Remove the parts of an archive."""
    for path in [listing(folder, name), *folder.glob(f"{name}.[0-9]*")]:
        path.unlink(missing_ok=True)


def write_archive(
    folder: Path,
    name: str,
    files: Mapping[str, Path],
    most_bytes: int,
    filters: Sequence[Mapping[str, int]] | None = None,
) -> None:
    """Write files as an archive in parts NAME.000, NAME.001, ... of at most `most_bytes`.

    files: by their paths in the archive. filters: of `lzma`, None to leave them as they are.
    """
    remove_parts(folder, name)
    with tempfile.TemporaryFile(dir=folder) as archive:
        # Any: an LZMAFile is no file to the types of tarfile.
        stream: Any
        with (
            lzma.open(archive, "wb", filters=filters)
            if filters
            else nullcontext(archive) as stream,
            # What is a link here is a file there.
            tarfile.open(fileobj=stream, mode="w", dereference=True) as tar,
        ):
            for path_in_archive, path in files.items():
                tar.add(path, path_in_archive)
        archive.seek(0)
        write_parts(folder, name, archive, most_bytes)


def write_parts(folder: Path, name: str, archive: IO[bytes], most_bytes: int) -> None:
    """Write the content of a file as parts, then their list."""
    lines: list[str] = []
    while content := archive.read(most_bytes):
        part = folder / f"{name}.{len(lines):03}"
        part.write_bytes(content)
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {part.name}\n")
    listing(folder, name).write_text("".join(lines))


def join_archive(folder: Path, name: str, target: Path) -> None:
    """Unpack an archive from its parts. Raise PartsError for one that is missing or damaged."""
    with tempfile.TemporaryFile(dir=target) as joined:
        for line in listing(folder, name).read_text(errors="replace").splitlines():
            digest, _, part = line.partition("  ")
            joined.write(read_part(folder / part, digest))
        joined.seek(0)
        try:
            unpack_archive(joined, target)
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise PartsError(f"{str(listing(folder, name))!r} lists no archive: {error}") from error


def read_part(path: Path, digest: str) -> bytes:
    """Return the content of a part. Raise PartsError if it is missing or damaged."""
    if not path.is_file():
        raise PartsError(f"{path.name} is missing from {str(path.parent)!r}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise PartsError(f"{str(path)!r} is damaged: bring it again")
    return content


def unpack_archive(file: IO[bytes], folder: Path) -> None:
    """Write the plain files of an archive below a folder."""
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            unpack_member(archive, member, folder)


def unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write a plain file of an archive below `folder`, wherever its name points."""
    # Not `extractall`: its safe filter came with Python 3.11.4.
    if not member.isfile():
        return
    content = archive.extractfile(member)
    assert content is not None
    parts = [part for part in PurePosixPath(member.name).parts if part not in ("/", "..")]
    target = folder.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


def join_pieces(first: Path) -> None:
    """Put a file together from its pieces NAME.000, NAME.001.webp, ... beside it.

    Pieces in WebP are mosaics of images. Raise PartsError if they cannot be read, or the file has
    not the checksum that NAME.sha256 says.
    """
    folder, name = first.parent, first.stem
    try:
        pieces = [
            read_mosaic(path) if path.suffix == ".webp" else path.read_bytes()
            for path in sorted(folder.glob(f"{name}.[0-9]*"))
        ]
    except (ImportError, OSError) as error:
        raise PartsError(f"{name} takes numpy, and Pillow with WebP: {error}") from error
    content = b"".join(pieces)
    if listing(folder, name).read_text() != hashlib.sha256(content).hexdigest():
        raise PartsError(f"{name} is not the file that was packed: Pillow gives other pixels")
    (folder / name).write_bytes(content)
    remove_parts(folder, name)


def read_mosaic(path: Path) -> bytes:
    """Return the pixels of a mosaic, image by image and channel by channel."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as mosaic:
        pixels = np.asarray(mosaic).reshape(-1, SIDE, COLUMNS, SIDE, CHANNELS)
    return pixels.transpose(0, 2, 4, 1, 3).tobytes()


def unpack_slice(folder: Path, target: Path) -> None:
    """Put source, wheels, data and store of a pack into a folder. Raise PartsError."""
    if not listing(folder, SOURCE).exists():
        raise PartsError(f"{str(folder)!r} holds no {listing(folder, SOURCE).name}")
    join_archive(folder, SOURCE, target)
    if listing(folder, WHEELS).exists():
        with tempfile.TemporaryDirectory() as scratch:
            join_archive(folder, WHEELS, Path(scratch))
            install(sorted(Path(scratch).glob("*.whl")), target)
        # Pillow may be one of them.
        sys.path.insert(0, str(target / SITE))
    if listing(folder, DATA).exists():
        join_archive(folder, DATA, target)
        for first in sorted((target / "data").rglob("*.000")):
            join_pieces(first)
    if listing(folder, STATE).exists():
        run_python("-m", "bench", "slices", "join", str(folder), target=target)


def install(wheels: list[Path], target: Path) -> None:
    """Install wheels into the folder `site` of another, without an index."""
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    options += ["--target", str(target / SITE)]
    run_python("-m", "pip", "install", *options, *map(str, wheels), target=target)


def run_python(*words: str, target: Path) -> None:
    """Run Python in a folder where a slice is unpacked. Raise PartsError if that fails."""
    environment = os.environ | {"PYTHONPATH": str(target / SITE)}
    result = subprocess.run(
        [sys.executable, *words], cwd=target, env=environment, stderr=subprocess.PIPE, text=True
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise PartsError(f"python {' '.join(words[:4])}: {lines[-1].removeprefix('error: ')}")


def main() -> None:
    """Unpack the folder of this file into another."""
    if len(sys.argv) != 2:
        sys.exit("usage: python unpack.py DIR")
    target = Path(sys.argv[1]).resolve()
    target.mkdir(parents=True, exist_ok=True)
    try:
        unpack_slice(Path(__file__).resolve().parent, target)
    except PartsError as error:
        sys.exit(f"error: {error}")
    print(f"cd {quote(str(target))} && export PYTHONPATH={quote(str(target / SITE))}")


if __name__ == "__main__":
    main()
