"""The file of one evaluation's verdicts, from which a stopped evaluation continues."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchattacks
from torch import Tensor, nn

from attacks.catalog import ATTACKS
from attacks.result import Cost, Evaluation


class ForeignVerdictsError(ValueError):
    """The file does not hold verdicts of this evaluation."""


def evaluation_key(
    networks: Mapping[str, nn.Module], x: Tensor, y: Tensor, settings: Mapping[str, Any]
) -> str:
    """Return the settings as JSON, with a fingerprint of networks, data and attacks.

    networks: the model under "", surrogates under their names.
    """
    digest = hashlib.sha256(repr(ATTACKS).encode())
    for name, net in networks.items():
        digest.update(name.encode())
        # Logits cover what a state_dict lacks: activations, constants, the order of the layers.
        with torch.no_grad():
            logits = net(x[:8])
        for value in (*net.state_dict().values(), logits):
            digest.update(_value_bytes(value))
    digest.update(_value_bytes(x))
    digest.update(_value_bytes(y))
    key = {**settings, "torchattacks": torchattacks.__version__, "sha256": digest.hexdigest()}
    return json.dumps(key, sort_keys=True)


def _value_bytes(value: Any) -> bytes:
    # A state_dict may hold anything beside tensors.
    if not isinstance(value, Tensor):
        return repr(value).encode()
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def save_verdicts(path: Path, key: str, result: Evaluation) -> None:
    """Write a file atomically: each verdict as an array, costs and flags as JSON."""
    costs = {name: _cost_to_json(cost) for name, cost in result.cost.items()}
    arrays: dict[str, Any] = {
        "key": key,
        "costs": json.dumps(costs),
        "flags": json.dumps({"found": result.flags, "probed": result.probed}),
        "clean": result.clean.numpy(),
    }
    for name, verdict in result.robust.items():
        arrays[f"robust_{name}"] = verdict.numpy()
    for name, verdict in result.control.items():
        arrays[f"control_{name}"] = verdict.numpy()
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def is_verdict_file(path: Path) -> bool:
    """Return whether a file holds verdicts, of any evaluation."""
    # A pipe would be waited for.
    if not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {"key", "costs", "clean"} <= set(archive)
    # A file of another kind fails in more ways than can be named.
    except Exception:
        return False


def load_verdicts(path: Path, key: str, result: Evaluation) -> None:
    """Add the verdicts of the same evaluation to `result`; ignore a damaged file.

    Raises:
        ForeignVerdictsError: the file is sound and holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            file_key = str(archive["key"]) if "key" in archive else ""
            # Only then: a foreign file may hold anything, and is refused, not ignored.
            if file_key == key:
                stored = _read_evaluation(archive, result.clean)
    # A damaged archive fails in more ways than can be named.
    except Exception:
        return
    if file_key != key:
        raise ForeignVerdictsError(f"{str(path)!r} holds {_describe_difference(file_key, key)}")
    result.robust |= stored.robust
    result.control |= stored.control
    result.cost |= stored.cost
    result.flags, result.probed = stored.flags, stored.probed


def _read_evaluation(archive: Mapping[str, Any], clean: Tensor) -> Evaluation:
    flags = json.loads(str(archive["flags"]))
    stored = Evaluation(clean, flags=flags["found"], probed=flags["probed"])
    for name, values in json.loads(str(archive["costs"])).items():
        stored.cost[name] = Cost(fooled=values.pop("broken"), **values)
    for name in archive:
        kind, _, attack = name.partition("_")
        if kind == "robust":
            stored.robust[attack] = torch.from_numpy(archive[name])
        elif kind == "control":
            stored.control[attack] = torch.from_numpy(archive[name])
    return stored


def _cost_to_json(cost: Cost) -> dict[str, Any]:
    # The file format calls the fooled images "broken".
    values = dict(vars(cost))
    values["broken"] = values.pop("fooled")
    return values


def _describe_difference(file_key: str, key: str) -> str:
    """Describe what a file holds instead of the verdicts of `key`."""
    try:
        in_file, wanted = json.loads(file_key), json.loads(key)
        names = [name for name in wanted if in_file[name] != wanted[name]]
    except (ValueError, KeyError, TypeError):
        return "no verdicts"
    # Keys are sorted, and the settings eps, norm, ... stand in front of sha256.
    if names and names[0] != "sha256":
        return f"another evaluation: {names[0]} {in_file[names[0]]}, not {wanted[names[0]]}"
    return "verdicts on another model, other images or by other attacks"
