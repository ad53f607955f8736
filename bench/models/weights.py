"""One network's tensors among all that a checkpoint file holds."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.models.reader import SAVE_AGAIN, StandIn, is_plain
from bench.system.errors import BenchError, UsageError
from bench.system.log import LOGGER

State = dict[str, Tensor]

# Levels that DataParallel, torch.compile, FSDP and the objects of modules put between names.
LEVELS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_parameters", "_buffers", "_modules")
LEVEL = re.compile(rf"(?<![^./])(?:{'|'.join(LEVELS)})\.")
# torchvision's names for parts of a ResNet.
SYNONYMS = {"fc": "linear", "downsample": "shortcut"}
STATISTICS = {"mean": "mean", "mu": "mean", "std": "std", "sigma": "std"}
AVERAGE = re.compile(r"(?<![^./_])(?:ema|swa|avg|averaged?)(?![^./_])")
MOST_LISTED = 20
# Counters, and a block of the TRADES release that its network never uses.
UNUSED = re.compile(r"sub_block1\.|(?:.*\.)?num_batches_tracked$|n_averaged$")


def find_network(
    path: Path, content: Mapping[str, Any], wanted: State, channels: int, key: str
) -> State:
    """Return the tensors of a network, under its own names, with mean and std if the file has them.

    wanted: the network's tensors. Of several networks in the file that fit it is the averaged one,
    or the one that `key` names. Where none fits it is the closest one. Raise BenchError without
    any tensors, UsageError where `key` has to choose.
    """
    tensors = {name: real_tensor(tensor) for name, tensor in flatten(content)}
    if not tensors:
        raise BenchError(f"{str(path)!r} holds no tensors of a network{describe(content)}")
    layers = {name: tensor for name, tensor in wanted.items() if name not in STATISTICS}
    weights, statistics = split_statistics(rename_parts(tensors, layers), layers, channels)
    weights = dict(sorted(weights.items()))
    keys = list(weights)
    networks = {
        prefix: tensors_under(weights, keys, prefix) for prefix in list_prefixes(weights, layers)
    }
    prefix = choose_network(path, networks, layers, key)
    return networks[prefix] | statistics_for(prefix, keys, statistics)


def real_tensor(tensor: Tensor) -> Tensor:
    """Return a plain tensor as it is, and an empty one of complex numbers for any other.

    Sparse, nested and quantised ones do not even have a shape to compare. None is a network's.
    """
    return tensor if is_plain(tensor) else torch.empty(0, dtype=torch.complex64)


def flatten(
    value: Any, base: str = "", separator: str = "/", visited: set[int] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in dictionaries and modules, with "/" between names of dictionaries.

    A dictionary that lies in several places is visited once.
    """
    visited = set() if visited is None else visited
    if isinstance(value, StandIn):
        value, separator = value.state, "."
    if isinstance(value, dict):
        entries = {} if id(value) in visited else value
        visited.add(id(value))
        for name, entry in entries.items():
            yield from flatten(entry, f"{base}{name}{separator}", separator, visited)
        return
    is_numbers = isinstance(value, (list, tuple)) and {type(entry) for entry in value} <= {
        int,
        float,
    }
    if isinstance(value, np.ndarray) or (is_numbers and last_part(base[:-1]) in STATISTICS):
        value = np.asarray(value)
        value = torch.tensor(value) if value.dtype.kind in "fiub" else None
    if isinstance(value, Tensor):
        yield base[:-1], value


def holds(content: Mapping[str, Any], name: str) -> bool:
    """Return whether a tensor of a file has this name, whatever is before it."""
    return any(f".{key}".endswith(f".{name}") for key, _ in flatten(content, separator="."))


def describe(content: Mapping[str, Any]) -> str:
    """Return what a file holds in place of tensors, for people."""
    kinds = {name: type(value).__name__ for name, value in content.items()}
    listed = ", ".join(f"{name!s:.60} ({kind})" for name, kind in list(kinds.items())[:5])
    advice = f": {SAVE_AGAIN}" if any("." in kind for kind in kinds.values()) else ""
    return f", but {listed}{advice}" if listed else ""


def rename_parts(tensors: State, layers: State) -> State:
    """Return the tensors under names without wrappers' levels and in the network's own words."""
    words = {part for name in layers for part in name.split(".")}
    synonyms = {word: own for word, own in SYNONYMS.items() if own in words and word not in words}
    renamed: State = {}
    for key, tensor in tensors.items():
        parts = [synonyms.get(part, part) for part in key.split(".")]
        name = LEVEL.sub("", ".".join(parts))
        renamed[key if name in renamed else name] = tensor
    return renamed


def last_part(key: str) -> str:
    """Return what comes after the last separator."""
    return re.split("[./]", key)[-1]


def split_statistics(tensors: State, layers: State, channels: int) -> tuple[State, State]:
    """Return the tensors apart from those that are a mean or a std of `channels` numbers."""
    own = tuple(name for name in layers if last_part(name) in STATISTICS)
    weights: State = {}
    statistics: State = {}
    for key, tensor in tensors.items():
        is_statistic = last_part(key) in STATISTICS and not key.endswith(own)
        (statistics if is_statistic and tensor.numel() == channels else weights)[key] = tensor
    return weights, statistics


def list_prefixes(weights: State, layers: State) -> list[str]:
    """Return what precedes the name of a layer in the keys, "" at least."""
    prefixes = {""}
    for key in weights:
        for start in [0, *(match.end() for match in re.finditer("[./]", key))]:
            if key[start:] in layers:
                prefixes.add(key[:start])
    return sorted(prefixes)


def keys_under(keys: Sequence[str], prefix: str) -> Iterator[str]:
    """Yield those of the sorted keys that begin with a prefix."""
    for position in range(bisect_left(keys, prefix), len(keys)):
        if not keys[position].startswith(prefix):
            return
        yield keys[position]


def tensors_under(weights: State, keys: Sequence[str], prefix: str) -> State:
    """Return the tensors under a prefix by the rest of their names, without other dictionaries."""
    state = {}
    for key in keys_under(keys, prefix):
        name = key.removeprefix(prefix)
        if "/" not in name and not UNUSED.match(name):
            state[name] = weights[key]
    return state


def choose_network(path: Path, networks: dict[str, State], layers: State, key: str) -> str:
    """Return the prefix of the network that fits, or else of the closest."""
    addresses = {prefix: prefix[:-1].replace("/", ".") or "." for prefix in networks}
    chosen = [prefix for prefix in networks if f".{key}." in f".{addresses[prefix]}."]
    if key and not chosen:
        held = list_some(sorted(set(addresses.values())))
        raise UsageError(f"{str(path)!r} holds no network under --key {key}: it has {held}")
    candidates = chosen if key else list(networks)
    fitting = [prefix for prefix in candidates if not misfits(networks[prefix], layers)]
    if not fitting:
        return min(candidates, key=lambda prefix: misfits(networks[prefix], layers))
    averages = [prefix for prefix in fitting if AVERAGE.search(prefix)]
    if len(fitting) > 1 and len(averages) != 1:
        names = list_some(sorted(addresses[prefix] for prefix in fitting))
        raise UsageError(f"{str(path)!r} holds several networks, {names}: choose one with --key")
    best = (averages or fitting)[0]
    if len(fitting) > 1:
        LOGGER.info(f"{str(path)!r}: the averaged weights, --key {addresses[best]}")
    return best


def list_some(names: Sequence[str]) -> str:
    """Return names of strangers with commas, of many the first ones."""
    listed = ", ".join(name[:60] for name in names[:MOST_LISTED])
    return f"{listed} and {len(names) - MOST_LISTED} more" if names[MOST_LISTED:] else listed


def misfits(state: State, layers: State) -> int:
    """Count the names that only one side has, and the tensors of another shape."""
    different = state.keys() ^ layers.keys()
    shapes = [name for name in state.keys() & layers if state[name].shape != layers[name].shape]
    return len(different) + len(shapes)


def statistics_for(prefix: str, keys: Sequence[str], statistics: State) -> State:
    """Return the mean and std beside the network under a prefix or above it, the nearest ones."""
    owners: dict[str, str] = {}
    for key in statistics:
        owner = key[: -len(last_part(key))]
        # A part that holds nothing else, such as "normalize.", belongs to what is around it.
        while owner and not any(keys_under(keys, owner)):
            owner = owner[: -len(last_part(owner[:-1])) - 1]
        owners[key] = owner
    nearest: State = {}
    for key in sorted(statistics, key=lambda key: len(owners[key])):
        if prefix.startswith(owners[key]):
            nearest[STATISTICS[last_part(key)]] = statistics[key]
    return nearest
