"""The pack of a slice: what a bare machine needs to carry out runs, in parts, and unpack.py."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import pickletools
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np
from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from bench import datasets
from bench.datasets.files.official_files import damage_of, folder_of
from bench.datasets.image_folder import ImageFolder
from bench.system import parts
from bench.system.environment import SOURCE_ROOT, STATE_FILE, source_state
from bench.system.errors import BenchError, UsageError
from bench.system.files import check_regular
from bench.system.log import LOGGER

PART_BYTES = 52_000_000
TEXT_FILTERS = ({"id": lzma.FILTER_LZMA2, "preset": 6},)
# Differences of neighbouring pixels take less than pixels. They repeat little: a short memory takes
# a fifth of the time.
SHORT_MEMORY = {"dict_size": 1 << 16, "mf": lzma.MF_HC3}
IMAGE_FILTERS = ({"id": lzma.FILTER_DELTA, "dist": 1}, TEXT_FILTERS[0] | SHORT_MEMORY)
ROW_BYTES = parts.COLUMNS * parts.CHANNELS * parts.SIDE**2
MOSAIC_BYTES = 100 * ROW_BYTES  # at most; WebP has at most 16,383 lines
# A machine for CUDA has those that fit its driver.
NEVER_PACKED = ("torch", "torchvision")
MACHINE = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"}
MACHINE |= {"platform_machine": "x86_64", "implementation_name": "cpython"}
# The newest C library that is counted on is that of Ubuntu 22.04.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def remove_pack(folder: Path) -> None:
    """Remove the parts of an earlier pack."""
    for name in (parts.SOURCE, parts.DATA, parts.WHEELS, parts.STATE):
        parts.remove_parts(folder, name)


def pack_source(folder: Path) -> None:
    """Pack the files that git tracks, as they are, and what it says of them; add unpack.py.

    Raise BenchError without a git checkout.
    """
    command = ["git", "-C", str(SOURCE_ROOT), "ls-files", "-z"]
    result = subprocess.run(command, capture_output=True, text=True)
    names = [name for name in result.stdout.split("\0") if (SOURCE_ROOT / name).is_file()]
    if result.returncode or not names:
        raise BenchError(f"{str(SOURCE_ROOT)!r} is no git checkout, whose files could be packed")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as state:
        json.dump(source_state(), state)
        state.flush()
        files = {name: SOURCE_ROOT / name for name in names} | {STATE_FILE: Path(state.name)}
        parts.write_archive(folder, parts.SOURCE, files, PART_BYTES, TEXT_FILTERS)
    shutil.copy(parts.__file__, folder / "unpack.py")


def pack_data(folder: Path, names: Iterable[str], data_root: Path) -> None:
    """Pack the official files of data sets. Raise BenchError for a file missing or damaged."""
    files: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for path in data_files(names, data_root):
            name = f"data/{path.relative_to(data_root)}"
            pieces = split_images(path.read_bytes())
            for ending, content in pieces.items():
                piece = Path(scratch, str(len(files)))
                piece.write_bytes(content)
                files[name + ending] = piece
            if not pieces:
                files[name] = path
        if files:
            parts.write_archive(folder, parts.DATA, files, PART_BYTES, IMAGE_FILTERS)


def data_files(names: Iterable[str], data_root: Path) -> list[Path]:
    """Return the files of data sets. Raise BenchError for one missing or damaged."""
    files: list[Path] = []
    for name in names:
        info = datasets.get(name)
        official = info.files()
        if isinstance(info, ImageFolder):
            LOGGER.warning(f"warning: {name} is not packed: copy its folder to the same path there")
        if official is None:
            continue  # It comes with a package.
        if damage := damage_of(info, data_root):
            raise BenchError(f"{name}: {damage}: run `python -m bench data fetch {name}`")
        base = folder_of(info, data_root)
        paths = [base / file for file in official.hashes]
        if not all(path.is_file() for path in paths):
            # Another form of the same data.
            paths = [path for path in base.rglob("*") if path.is_file()]
        files += paths
    # Parts of one data set have the same files.
    return list(dict.fromkeys(files))


def split_images(content: bytes) -> dict[str, bytes]:
    """Return the pieces of a pickle of images as of CIFAR, by the endings of their names.

    `parts.join_pieces` puts them together again. Another file has no pieces.
    """
    start, size = longest_string(content)
    if not size or size % ROW_BYTES:
        return {}
    end = start + size
    pieces = {".000": content[:start]}
    for position in range(start, end, MOSAIC_BYTES):
        pixels = content[position : min(position + MOSAIC_BYTES, end)]
        pieces[f".{len(pieces):03}.webp"] = encode_mosaic(pixels)
    pieces[f".{len(pieces):03}"] = content[end:]
    return pieces | {".sha256": hashlib.sha256(content).hexdigest().encode()}


def longest_string(content: bytes) -> tuple[int, int]:
    """Return where the longest string of a pickle of Python 2 begins and its size, 0 for none."""
    strings = [(0, 0)]
    try:
        for opcode, argument, position in pickletools.genops(content):
            if opcode.name == "BINSTRING" and position is not None:
                # The opcode is one byte, the size four.
                strings.append((len(argument or ""), position + 5))
    except ValueError:
        return 0, 0  # It is no pickle.
    size, start = max(strings)
    return start, size


def encode_mosaic(pixels: bytes) -> bytes:
    """Return images (N, 3, 32, 32) of bytes, N a multiple of 100, as one image in lossless WebP."""
    rows = np.frombuffer(pixels, np.uint8)
    rows = rows.reshape(-1, parts.COLUMNS, parts.CHANNELS, parts.SIDE, parts.SIDE)
    mosaic = rows.transpose(0, 3, 1, 4, 2).reshape(-1, parts.COLUMNS * parts.SIDE, parts.CHANNELS)
    file = io.BytesIO()
    # Pillow's own effort, 80, takes twice the time for 0.15 % less.
    Image.fromarray(mosaic).save(file, "WEBP", lossless=True, quality=50)
    return file.getvalue()


def pack_wheels(folder: Path, have: Path, python: str) -> None:
    """Download and pack the wheels that a machine lacks.

    Args:
        folder: of the parts.
        have: a file with what the machine has, as `pip freeze` prints it, or names alone.
        python: the version of the machine's Python, such as 3.12.
    """
    packages = read_packages(have)
    wheels = missing_packages(project_requirements(), packages, python)
    with tempfile.TemporaryDirectory() as scratch:
        if wheels:
            download_wheels(wheels, python, Path(scratch))
        files = {path.name: path for path in sorted(Path(scratch).glob("*.whl"))}
        if files:
            parts.write_archive(folder, parts.WHEELS, files, PART_BYTES)


def read_packages(path: Path) -> dict[str, str]:
    """Return name -> version, "" where it is not said, from lines as of `pip freeze`."""
    packages: dict[str, str] = {}
    check_regular(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{str(path)!r} is no text") from error
    for line in filter(None, map(str.strip, lines)):
        if line.startswith(("#", "-")):
            continue
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            message = f"{str(path)!r}: {line[:60]!r} is no line of `pip freeze`"
            raise UsageError(message) from error
        versions = [specifier.version for specifier in requirement.specifier]
        packages[canonicalize_name(requirement.name)] = "".join(versions[:1])
    return packages


def project_requirements() -> list[str]:
    """Return what the packed source says it needs."""
    project = tomllib.loads((SOURCE_ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needs: list[str] = project["project"]["dependencies"]
    return needs


def missing_packages(needs: Iterable[str], have: Mapping[str, str], python: str) -> list[str]:
    """Return NAME==VERSION of what is needed, in the end, and a machine lacks.

    The versions are those that are installed here. Raise BenchError for one that is not.
    """
    values = dict(MACHINE, python_version=python, python_full_version=f"{python}.0")
    environment: dict[str, str] = {**default_environment(), **values}  # type: ignore[dict-item]
    todo = [(Requirement(text), {""}) for text in needs]
    missing: dict[str, str] = dict.fromkeys(NEVER_PACKED, "")
    while todo:
        requirement, extras = todo.pop()
        name, marker = canonicalize_name(requirement.name), requirement.marker
        if marker and not any(marker.evaluate(environment | {"extra": e}) for e in extras):
            continue
        if name in missing or is_met(requirement, have.get(name)):
            continue
        try:
            missing[name] = version(name)
            brought = requires(name) or []
        except PackageNotFoundError as error:
            raise BenchError(f"{name}, which that machine lacks, is not installed here") from error
        todo += [(Requirement(text), {"", *requirement.extras}) for text in brought]
    return [f"{name}=={number}" for name, number in sorted(missing.items()) if number]


def is_met(requirement: Requirement, have: str | None) -> bool:
    """Return whether a version fits: "" for any, None for a package that is not there."""
    return have == "" or (have is not None and requirement.specifier.contains(have, True))


def download_wheels(wheels: list[str], python: str, folder: Path) -> None:
    """Download wheels for another machine. Raise BenchError if pip cannot."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={platform}" for platform in PLATFORMS]
    result = subprocess.run(
        [*command, "--dest", str(folder), *wheels], stderr=subprocess.PIPE, text=True
    )
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {result.returncode}"
        raise BenchError(f"pip cannot download what that machine lacks: {reason[:300]}")
