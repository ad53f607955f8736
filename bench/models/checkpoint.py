"""Checkpoint files: a network saved, and one loaded from a file of any origin."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.datasets import Dataset
from bench.models import build, check_stated
from bench.models.adapter import Adapted
from bench.models.reader import SAFETENSORS, is_plain, read, read_metadata
from bench.models.weights import State, find_network, holds
from bench.system.errors import BenchError
from bench.system.files import write_atomically
from methods.base import Net

__all__ = [
    "SAFETENSORS",
    "load",
    "read",
    "read_metadata",
    "save",
    "stated_network",
]

COUNTER = "num_batches_tracked"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically. Raise OSError where it cannot be written."""
    # A signal that interrupts torch while it writes to a file makes torch abort the process.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getbuffer())


def load(
    path: Path,
    arch: str,
    info: Dataset,
    sha256: str | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    key: str = "",
    where: str = "",
) -> Net:
    """Build the network `arch` with the tensors of a checkpoint, in eval mode on the CPU.

    mean, std: per channel, for a file that holds none; without them it was trained on raw pixels,
    and the network normalises nothing. key: which network of the file, where several fit. where:
    the file's address, for the line about a web page. Raise BenchError where file, architecture and
    number of classes do not match.
    """
    net, channels = build(arch, info), info.shape[0]
    wanted = {name: value for name, value in net.state_dict().items() if not name.endswith(COUNTER)}
    content = read(path, sha256, where)
    names = layer_names(net, content, wanted)
    layers = {name: wanted[own] for name, own in names.items()}
    tensors = find_network(path, content, layers, channels, key)
    state = {names.get(name, name): tensor for name, tensor in tensors.items()}
    add_statistics(path, state, "mean", mean, (0.0,) * channels)
    add_statistics(path, state, "std", std, (1.0,) * channels)
    if different := wanted.keys() ^ state.keys():
        count = f"{len(different)} of {len(wanted)} tensors differ, {min(different)[:60]!r} first"
        raise BenchError(f"{str(path)!r} is not a {arch}: {count}")
    for name in wanted:
        check_kind(path, name, state[name])
    misfit = f"{str(path)!r} is not a {arch} for {info.name}"
    check_class_count(misfit, info, net, state)
    for name, tensor in wanted.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(tensor.shape)}"
            raise BenchError(f"{misfit}: {name} has shape {shapes}")
    check_values(path, wanted, state)
    net.load_state_dict(state, strict=False)
    return net.eval()


def stated_network(path: Path, arch: str, dataset: str) -> tuple[str, str]:
    """Return network and data set, where not named those in the head of a safetensors file.

    Raise UsageError for a head that names a function.
    """
    head = read_metadata(path)
    if not arch:
        arch = head.get("arch", "")
        if arch:
            check_stated(arch, repr(str(path)))
    return arch, dataset or head.get("dataset", "")


def layer_names(net: Net, content: dict[str, Any], wanted: State) -> dict[str, str]:
    """Return what a network calls each tensor, by the name that the file gives it."""
    if isinstance(net, Adapted) and not holds(content, "last_linear.weight"):
        # The file of a module of others, under the module's own names.
        return {name: own for name, own in net.module_names().items() if own in wanted}
    return {name: name for name in wanted}


def add_statistics(
    path: Path, state: State, name: str, stated: tuple[float, ...], neutral: tuple[float, ...]
) -> None:
    """Add the stated mean or std, or else the neutral one, to tensors of a file without.

    Raise BenchError if the file holds others than those stated, to three digits, in any shape.
    """
    expected = torch.tensor(stated or neutral)
    stored = state.get(name, expected)
    # Other releases keep them flat.
    state[name] = stored.reshape(1, -1, 1, 1)
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


def check_values(path: Path, wanted: State, state: State) -> None:
    """Raise BenchError unless all values are finite, and the standard deviations above 0."""
    for name, tensor in wanted.items():
        # In the precision of the network: a larger number of a finer one would be infinite.
        if not state[name].to(tensor.dtype).isfinite().all():
            raise BenchError(f"{str(path)!r} holds values that are not finite in {name}")
    if not (state["std"] > 0).all():
        raise BenchError(f"{str(path)!r} holds a std that is not above 0")


def check_kind(path: Path, name: str, tensor: Tensor) -> None:
    """Raise BenchError unless a tensor holds plain, real numbers."""
    if not is_plain(tensor):
        message = f"holds {name} as something else than a plain tensor of real numbers"
        raise BenchError(f"{str(path)!r} {message}")
