"""Checkpoint files: written atomically, read without unpickling code, checked by hash, keys of other releases included."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.datasets import Dataset
from bench.models import build
from bench.system.errors import BenchError
from methods.base import Net

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # where releases keep the tensors
PREFIXES = (
    "module.",
    "basic_net.",
    "model.",
    "net.",
    "1.",
)  # DataParallel, the attack wrappers, (normalise, net) pairs
UNUSED = ("sub_block1.", "num_batches_tracked")


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes so that a reader, or a process killed at any moment, leaves the old file or the new one."""
    written = (
        io.BytesIO()
    )  # a signal that interrupts writing to a file itself makes torch abort the process
    torch.save(content, written)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(written.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_intact(path: Path) -> None:
    """Raises BenchError if a checksum inside a zip file is wrong, which reading its tensors does not notice."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (
        OSError,
        zipfile.BadZipFile,
    ):  # the old format has no checksums; `read` tells what is no checkpoint
        return
    if damaged:
        raise BenchError(f"{str(path)!r} is damaged: a checksum inside is wrong, in {damaged!r}")


def read(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """The content of a checkpoint file on the CPU. Raises BenchError if it is missing, not one, or not the one hashed."""
    try:
        if sha256 and (found := sha256_of(path)) != sha256.lower():
            raise BenchError(
                f"{str(path)!r} has sha256 {found[:16]}..., not {sha256[:16]}...: another or damaged file"
            )
        content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise BenchError(f"there is no checkpoint {str(path)!r}") from error
    except BenchError:
        raise
    except Exception as error:  # bytes that are no checkpoint fail in more ways than can be named
        if (
            isinstance(error, OSError) and error.filename
        ):  # a folder, no permission, a name that is too long
            raise BenchError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        raise BenchError(
            f"{str(path)!r} is not a checkpoint of tensors alone, or is damaged"
        ) from error
    if not isinstance(content, dict):
        raise BenchError(
            f"{str(path)!r} holds a {type(content).__name__}, not a checkpoint's dictionary of tensors"
        )
    return content


def load(
    path: Path,
    arch: str,
    info: Dataset,
    sha256: str | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Net:
    """The network `arch` with the tensors of a checkpoint, in eval mode on the CPU.

    Takes this project's files and those of the authors and RobustBench. `mean` and `std`, a value per channel, are for
    a file that holds none; without them it was trained on raw pixels, and the network normalises nothing. Raises
    BenchError where file, architecture and number of classes do not match.
    """
    net = build(arch, info)
    state = tensors(read(path, sha256))
    if not state:
        raise BenchError(f"{str(path)!r} holds no tensors of a network")
    for name, stated, neutral in (("mean", mean, 0.0), ("std", std, 1.0)):
        state.setdefault(name, torch.tensor(stated or (neutral,) * info.shape[0]))
        if stated and not is_close(state[name], stated):
            raise BenchError(
                f"{str(path)!r} holds a {name} of its own, another one than is stated for it"
            )
    own = {key for key in net.state_dict() if not key.endswith(UNUSED)}
    odd = own ^ state.keys()
    if odd:
        raise BenchError(
            f"{str(path)!r} is not a {arch}: {len(odd)} of {len(own)} tensors differ, {min(odd)!r} first"
        )
    for name in ("mean", "std"):  # other releases keep them flat
        if state[name].numel() == info.shape[0]:
            state[name] = state[name].view(1, -1, 1, 1)
    check_classes(path, arch, info, net, state)
    for name, tensor in net.state_dict().items():
        if name in state and tensor.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            raise BenchError(
                f"{str(path)!r} is not a {arch} for {info.name}: {name} has shape {shapes}"
            )
        if name in state and (
            state[name].is_complex() or state[name].is_meta or state[name].layout != torch.strided
        ):
            raise BenchError(
                f"{str(path)!r} holds {name} as something else than a plain tensor of real numbers"
            )
        if name in state and not state[name].isfinite().all():
            raise BenchError(f"{str(path)!r} holds values that are not finite in {name}")
    net.load_state_dict(state, strict=False)
    return net.eval()


def is_close(found: Tensor, stated: tuple[float, ...]) -> bool:
    """Whether a file's mean or std, a value per channel in any shape, are those stated, to three digits."""
    return found.numel() == len(stated) and torch.allclose(
        found.flatten().float(), torch.tensor(stated), atol=1e-3
    )


def check_classes(path: Path, arch: str, info: Dataset, net: Net, state: dict[str, Tensor]) -> None:
    """Raises BenchError if the last layer of the file tells another number of classes apart than the data set has."""
    head = next(
        f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Linear)
    )
    shape, wanted = tuple(state[head].shape), tuple(net.state_dict()[head].shape)
    if len(shape) == 2 and shape[0] != wanted[0] and shape[1] == wanted[1]:
        count = f"{shape[0]} classes, {info.name} has {wanted[0]}"
        raise BenchError(
            f"{str(path)!r} is not a {arch} for {info.name}: {head} has shape {shape}, not {wanted}: {count}"
        )


def tensors(content: dict[str, Any]) -> dict[str, Tensor]:
    """The network's tensors of a checkpoint under this project's names."""
    for name in WRAPPERS:
        if isinstance(content.get(name), dict):
            return tensors(content[name])
    state = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            state = {
                key.removeprefix(prefix).removeprefix("0."): value for key, value in state.items()
            }
            return tensors(state)
    return {
        key: value
        for key, value in state.items()
        if not key.startswith(UNUSED[:1]) and not key.endswith(UNUSED[1:])
    }
