"""Checkpoint files, of other releases too: read without unpickling code, checked by hash."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.datasets import Dataset
from bench.models import build
from bench.models.adapter import own_names
from bench.system.errors import BenchError
from bench.system.files import sha256_of_file, write_atomically
from methods.base import Net

State = dict[str, Tensor]

# Where releases keep the tensors.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# DataParallel, the attack wrappers, (normalise, net) pairs.
PREFIXES = ("module.", "basic_net.", "model.", "net.", "1.")
# The TRADES release stores a block of this name that its network never uses.
UNUSED_BLOCK = "sub_block1."
COUNTER = "num_batches_tracked"
SAFETENSORS = ".safetensors"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically. Raise OSError where it cannot be written."""
    # A signal that interrupts torch while it writes to a file makes torch abort the process.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


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


def read(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Return the content on the CPU. Raise BenchError for no checkpoint or one of another hash."""
    try:
        if sha256:
            check_hash(path, sha256)
        if path.suffix == SAFETENSORS:
            content = load_safetensors(path)
        else:
            content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise BenchError(f"there is no checkpoint {str(path)!r}") from error
    except BenchError:
        raise
    # Bytes that are no checkpoint fail in more ways than can be named.
    except Exception as error:
        # Only an error of the system, for a folder or no permission say, has a file name.
        if isinstance(error, OSError) and error.filename:
            raise BenchError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        message = "is not a checkpoint of tensors alone, or is damaged"
        raise BenchError(f"{str(path)!r} {message}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise BenchError(f"{str(path)!r} holds a {kind}, not a checkpoint's dictionary of tensors")
    return content


def load_safetensors(path: Path) -> State:
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


def load(
    path: Path,
    arch: str,
    info: Dataset,
    sha256: str | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Net:
    """Build the network `arch` with the tensors of a checkpoint, in eval mode on the CPU.

    mean, std: per channel, for a file that holds none; without them it was trained on raw pixels,
    and the network normalises nothing. Raise BenchError where file, architecture and number of
    classes do not match.
    """
    net = build(arch, info)
    state = own_names(net, network_tensors(read(path, sha256)))
    if not state:
        raise BenchError(f"{str(path)!r} holds no tensors of a network")
    channels = info.shape[0]
    add_statistics(path, state, "mean", mean, (0.0,) * channels)
    add_statistics(path, state, "std", std, (1.0,) * channels)
    wanted = {key: value for key, value in net.state_dict().items() if not key.endswith(COUNTER)}
    different = wanted.keys() ^ state.keys()
    if different:
        count = f"{len(different)} of {len(wanted)} tensors differ, {min(different)!r} first"
        raise BenchError(f"{str(path)!r} is not a {arch}: {count}")
    # Other releases keep the statistics flat.
    for name in ("mean", "std"):
        if state[name].numel() == channels:
            state[name] = state[name].view(1, -1, 1, 1)
    misfit = f"{str(path)!r} is not a {arch} for {info.name}"
    check_class_count(misfit, info, net, state)
    for name, tensor in wanted.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            raise BenchError(f"{misfit}: {name} has shape {shapes}")
        check_values(path, name, state[name])
    net.load_state_dict(state, strict=False)
    return net.eval()


def add_statistics(
    path: Path, state: State, name: str, stated: tuple[float, ...], neutral: tuple[float, ...]
) -> None:
    """Add the stated mean or std, or else the neutral one, to tensors of a file without.

    Raise BenchError if the file holds others than those stated, to three digits, in any shape.
    """
    expected = torch.tensor(stated or neutral)
    stored = state.setdefault(name, expected)
    if not stated:
        return
    equal_count = stored.numel() == len(stated)
    if not equal_count or not torch.allclose(stored.flatten().float(), expected, atol=1e-3):
        message = f"holds a {name} of its own, another one than is stated for it"
        raise BenchError(f"{str(path)!r} {message}")


def check_class_count(misfit: str, info: Dataset, net: Net, state: State) -> None:
    """Raise BenchError, with `misfit` first, if the last layer is for another number of classes."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            shape, wanted = tuple(state[f"{name}.weight"].shape), tuple(module.weight.shape)
            if len(shape) == 2 and shape[0] != wanted[0] and shape[1] == wanted[1]:
                shapes = f"{name}.weight has shape {shape}, not {wanted}"
                count = f"{shape[0]} classes, {info.name} has {wanted[0]}"
                raise BenchError(f"{misfit}: {shapes}: {count}")


def check_values(path: Path, name: str, tensor: Tensor) -> None:
    """Raise BenchError unless a tensor holds plain, finite, real numbers."""
    if tensor.is_complex() or tensor.is_meta or tensor.layout != torch.strided:
        message = f"holds {name} as something else than a plain tensor of real numbers"
        raise BenchError(f"{str(path)!r} {message}")
    if not tensor.isfinite().all():
        raise BenchError(f"{str(path)!r} holds values that are not finite in {name}")


def network_tensors(content: dict[str, Any]) -> State:
    """Return the network's tensors of a checkpoint, under names without prefixes."""
    for name in WRAPPERS:
        if isinstance(content.get(name), dict):
            return network_tensors(content[name])
    state = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            state[key] = value
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state):
            keys = {key: key.removeprefix(prefix).removeprefix("0.") for key in state}
            return network_tensors({keys[key]: value for key, value in state.items()})
    for key in list(state):
        if key.startswith(UNUSED_BLOCK) or key.endswith(COUNTER):
            del state[key]
    return state
