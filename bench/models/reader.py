"""Checkpoint files of any origin: what a file holds, read without running code from it."""

from __future__ import annotations

import html
import pickle
import re
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.system.errors import BenchError
from bench.system.files import check_regular, sha256_of_file

SAFETENSORS = ".safetensors"
SAVE_AGAIN = "load it where its code is, and save it again by torch.save(model.state_dict(), FILE)"
UNPACK = "unpack it, and name the checkpoint in it"
CUT_SHORT = "is cut short: download or copy it again"
DAMAGED = "is not a checkpoint of tensors alone, or is damaged"

MOST_LEVELS = 100  # of dictionaries inside each other
# Eight bits and less are for storage: torch has hardly an operation on them.
PLAIN_TYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
PLAIN_TYPES |= {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8}
HEAD_BYTES = 1024
PAGE_BYTES = 1 << 20
# What may precede the first tag of a page: a byte order mark and space.
BLANKS = b"\xef\xbb\xbf \t\r\n"
ZIP_HEAD = b"PK\x03\x04"
# How each pickle begins, and what the older format of torch.save has in its first one.
PICKLE_HEAD = b"\x80"
TORCH_NUMBER = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
# Files of other programs by their first bytes.
OTHER_KINDS = {
    b"version https://git-lfs": "is a pointer of Git LFS: `git lfs pull` fetches the file",
    b"\x89HDF": f"is an HDF5 file, of Keras for example, not of torch: {SAVE_AGAIN}",
    b"\x93NUMPY": f"is one array of NumPy, not a checkpoint: {SAVE_AGAIN}",
    b"\x1f\x8b": f"is compressed by gzip: {UNPACK}",
    b"BZh": f"is compressed by bzip2: {UNPACK}",
    b"\xfd7zXZ": f"is compressed by xz: {UNPACK}",
    b"\x28\xb5\x2f\xfd": f"is compressed by zstd: {UNPACK}",
    b"7z\xbc\xaf": f"is a 7z archive: {UNPACK}",
    b"Rar!": f"is a rar archive: {UNPACK}",
}
# Zip archives that torch.save did not write, by a name in them.
OTHER_ARCHIVES = {
    "constants.pkl": f"is a TorchScript archive, which is a program: {SAVE_AGAIN}",
    "archive_format": f"is a graph of torch.export, which is a program: {SAVE_AGAIN}",
    ".npy": f"is an archive of NumPy arrays, not a checkpoint: {SAVE_AGAIN}",
}


class StandIn(list[Any]):
    """An object of a class that is not loaded. It keeps its state and does nothing."""

    state: Any = None
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state


# The module that stand-ins name in torch's messages.
STAND_INS = "stand_in"
UNKNOWN_CLASS = re.compile(r"GLOBAL (\S+) was not an allowed global")
UNKNOWN_DICTIONARY = re.compile(rf"Can only SETITEMS? for .*<class '{STAND_INS}\.(\S+)'>")
BLOCKED_NAME = re.compile(r"unsupported GLOBAL (\S+) whose module")


def numpy_globals() -> list[Any]:
    """Return what NumPy's numbers and arrays need, with the names in files of NumPy 1 and 2."""
    codes = "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "SU"
    allowed: list[Any] = [np.dtype, np.ndarray, *{type(np.dtype(code)) for code in codes}]
    functions: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]
    for function in functions:
        for core in ("core", "_core"):
            allowed.append((function, f"numpy.{core}.multiarray.{function.__name__}"))
    return allowed


def read(path: Path, sha256: str | None = None, where: str = "") -> dict[str, Any]:
    """Return the content on the CPU. Raise BenchError for no checkpoint or one of another hash.

    where: the address that the file should be from, for the line about a web page.
    """
    content = read_content(path, sha256, where)
    if isinstance(content, StandIn):
        return {"object": content}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise BenchError(f"{str(path)!r} holds a {kind}, not a checkpoint's dictionary of tensors")
    check_depth(path, content)
    return content


def check_depth(path: Path, content: object) -> None:
    """Raise BenchError for dictionaries inside dictionaries, as no network has them."""
    level: list[object] = [content]
    visited = set[int]()
    for _ in range(MOST_LEVELS):
        deeper: list[object] = []
        for value in level:
            inner = value.state if isinstance(value, StandIn) else value
            if isinstance(inner, dict) and id(inner) not in visited:
                visited.add(id(inner))
                deeper += [entry for entry in inner.values() if isinstance(entry, (dict, StandIn))]
        level = deeper
        if not level:
            return
    raise BenchError(f"{str(path)!r} holds dictionaries more than {MOST_LEVELS} deep")


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds real numbers that torch can compute with."""
    is_special = tensor.is_nested or tensor.is_quantized or tensor.is_meta
    return tensor.layout == torch.strided and not is_special and tensor.dtype in PLAIN_TYPES


def read_content(path: Path, sha256: str | None = None, where: str = "") -> Any:
    """Return what a file of torch.save or safetensors holds, of any type. Raises as `read`."""
    try:
        check_regular(path)
        check_kind(path, where)
        if sha256:
            check_hash(path, sha256)
        if is_safetensors(path):
            return load_safetensors(path)
        check_zip_checksums(path)
        return load_pickle(path)
    except FileNotFoundError as error:
        raise BenchError(f"there is no checkpoint {str(path)!r}") from error
    except BenchError:
        raise
    # Bytes that are no checkpoint fail in more ways than can be named.
    except Exception as error:
        # Only an error of the system, for a folder or no permission say, has a file name.
        if isinstance(error, OSError) and error.filename:
            raise BenchError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        raise BenchError(f"{str(path)!r} {explain(error)}") from error


def load_pickle(path: Path) -> Any:
    """Read a file of torch.save, with stand-ins for objects of classes that torch does not know."""
    stand_ins: dict[str, Any] = {"collections.defaultdict": new_dictionary}
    dictionaries: set[str] = set()
    while True:
        allowed = [*numpy_globals(), *((stand_in, name) for name, stand_in in stand_ins.items())]
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
                warnings.simplefilter("ignore")
                return torch.load(path, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:
            unknown = UNKNOWN_CLASS.search(str(error))
            dictionary = UNKNOWN_DICTIONARY.search(str(error))
            # torch's message leaves the module of built-in names out.
            if (
                unknown
                and (name := re.sub(r"^(\w+)$", r"builtins.\1", unknown[1])) not in stand_ins
            ):
                stand_ins[name] = stand_in_class(name)
            elif dictionary and dictionary[1] not in dictionaries:
                dictionaries.add(dictionary[1])
                stand_ins[dictionary[1]] = stand_in_class(dictionary[1], __new__=new_dictionary)
            else:
                raise


def stand_in_class(name: str, **members: Any) -> type[StandIn]:
    """Make the class that stands in for the one with this name."""
    return type(name, (StandIn,), {"__module__": STAND_INS, **members})


def new_dictionary(*_: Any) -> dict[Any, Any]:
    """Make the object of a class of dictionaries: torch fills in only those of the library."""
    return OrderedDict()


def explain(error: Exception) -> str:
    """Return why torch or safetensors cannot read a file, for people."""
    message = str(error)
    blocked = BLOCKED_NAME.search(message)
    if blocked:
        return f"names {blocked[1]}, which no network needs: {SAVE_AGAIN}"
    foreign = re.search(rf"<class '{STAND_INS}\.(\S+)'>", message)
    if foreign:
        return f"names the foreign class {foreign[1]}: {SAVE_AGAIN}"
    if "Unsupported operand" in message:
        return f"was pickled by another protocol than torch.save's: {SAVE_AGAIN}"
    if "persistent_load" in message:
        return f"is a whole network in the older format of torch.save: {SAVE_AGAIN}"
    ends = ("unexpected EOF", "deserializing header")
    if isinstance(error, EOFError) or any(end in message for end in ends):
        return CUT_SHORT
    return DAMAGED


def check_kind(path: Path, where: str) -> None:
    """Raise BenchError for a file that is no checkpoint, with a line that says what it is."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    kind = other_kind(path, head)
    if head.lstrip(BLANKS).startswith(b"<"):
        kind = describe_page(path, where)
    if kind:
        raise BenchError(f"{str(path)!r} {kind}")


def other_kind(path: Path, head: bytes) -> str:
    """Return what a file is that is no checkpoint, "" for what may be one."""
    for start, kind in OTHER_KINDS.items():
        if head.startswith(start):
            return kind
    if head.startswith(ZIP_HEAD):
        return other_archive(path)
    if head.startswith(PICKLE_HEAD):
        return "" if TORCH_NUMBER in head else f"was pickled without torch.save: {SAVE_AGAIN}"
    if not head:
        return "is empty: download or copy it again"
    if head.isascii() and b"\0" not in head:
        return f"is text and not a checkpoint, it begins {head.splitlines()[0][:60].decode()!r}"
    if is_safetensors(path):
        return ""
    return f"is a tar archive: {UNPACK}" if tarfile.is_tarfile(path) else DAMAGED


def other_archive(path: Path) -> str:
    """Return what a zip archive is that torch.save did not write, "" for one that it did."""
    if not zipfile.is_zipfile(path):
        return CUT_SHORT
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    for end, kind in OTHER_ARCHIVES.items():
        if any(name.endswith(end) for name in names):
            return kind
    if not any(name.endswith("data.pkl") for name in names):
        return f"is a zip archive without a checkpoint's data.pkl: {UNPACK}"
    return ""


def describe_page(path: Path, where: str) -> str:
    """Say that a file is a web page, with the download that was meant as far as it tells."""
    with path.open("rb") as file:
        page = html.unescape(file.read(PAGE_BYTES).decode("utf-8", "replace"))
    title = re.search(r"<title[^>]*>\s*([^<]*?)\s*</title>", page, re.I)
    name = re.search(r'uc-name-size"><a[^>]*>([^<]+)<', page)
    meant = [name[1]] if name else []
    meant += filter(None, [download_address(where or page)])
    line = f"is a web page, {title[1]!r}, not a checkpoint" if title else "is a web page"
    return " ".join(f"{line}: download {' from '.join(meant) or 'the file itself'}".split())


def download_address(text: str) -> str:
    """Return the address of the file that a web page, or the address of one, stands for."""
    drive = re.search(r'(?:[?&]id=|/file/d/|name="id" value=")([\w-]{20,})', text)
    if drive:
        return (
            f"https://drive.usercontent.google.com/download?export=download&confirm=t&id={drive[1]}"
        )
    page = re.search(r'(?:"og:url" content|"canonical" href)="(https?://[^"]+)"', text)
    address = page[1] if page else text if text.startswith("http") else ""
    return address.replace("/blob/", "/resolve/" if "huggingface.co" in address else "/raw/")


def is_safetensors(path: Path) -> bool:
    """Return whether a file is of safetensors: a length of 8 bytes, then a JSON object."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == SAFETENSORS or head[8:] == b"{"


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file. Raise BenchError without its package."""
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the head of a safetensors file, {} for any other file."""
    if path.suffix != SAFETENSORS or not path.is_file():
        return {}
    try:
        with open_safetensors(path) as file:
            return file.metadata() or {}
    except BenchError:
        raise
    # `read` says what is wrong with the file.
    except Exception:
        return {}


def open_safetensors(path: Path) -> Any:
    """Open a safetensors file. Raise BenchError without its package."""
    try:
        from safetensors import safe_open
    except ModuleNotFoundError as error:
        need = "safetensors: pip install 'robust-distill-bench[safetensors]'"
        raise BenchError(f"to read {str(path)!r} needs {need}") from error
    return safe_open(path, framework="pt")


def check_hash(path: Path, sha256: str) -> None:
    """Raise BenchError for a file with another hash."""
    digest = sha256_of_file(path)
    if digest != sha256.lower():
        hashes = f"sha256 {digest[:16]}..., not {sha256[:16]}..."
        raise BenchError(f"{str(path)!r} has {hashes}: another or damaged file")


def check_zip_checksums(path: Path) -> None:
    """Raise BenchError if a checksum inside is wrong, which reading the tensors does not notice."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile):
        # The legacy format has no checksums; `read` refuses other files.
        return
    if damaged:
        raise BenchError(f"{str(path)!r} is damaged: a checksum inside is wrong, in {damaged!r}")
