"""The file that holds the verdicts of one evaluation, so that it can stop and go on."""

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


def fingerprint(
    networks: Mapping[str, nn.Module], x: Tensor, y: Tensor, setting: dict[str, Any]
) -> str:
    """The setting as JSON with what identifies networks, data and attacks: verdicts of something else are never taken
    for these.

    networks: the model under "", surrogates under their names. The logits stand for what tensors do not tell:
    activations, constants, the order of the layers.
    """
    digest = hashlib.sha256(repr(ATTACKS).encode())
    for name, net in networks.items():
        digest.update(name.encode())
        with torch.no_grad():
            logits = net(x[:8])
        for tensor in (*net.state_dict().values(), logits):
            digest.update(content(tensor))
    for tensor in (x, y):
        digest.update(content(tensor))
    setting = setting | {"torchattacks": torchattacks.__version__, "sha256": digest.hexdigest()}
    return json.dumps(setting, sort_keys=True)


class ForeignRecordError(ValueError):
    """The file holds something else than verdicts of this evaluation."""


def content(state: Any) -> bytes:
    """The bytes of a tensor of any type, the text of anything else."""
    return repr(state).encode() if not isinstance(state, Tensor) else _bytes(state)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def save(record: Path, key: str, result: Evaluation) -> None:
    """Writes atomically: verdicts as one array each, costs and flags as JSON."""
    costs = json.dumps({name: vars(cost) for name, cost in result.cost.items()})
    flags = json.dumps({"found": result.flags, "probed": result.probed})
    arrays: dict[str, Any] = {
        f"robust_{name}": verdict.numpy() for name, verdict in result.robust.items()
    }
    arrays |= {f"control_{name}": verdict.numpy() for name, verdict in result.control.items()}
    part = record.with_name(record.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(
            file, key=key, costs=costs, flags=flags, clean=result.clean.numpy(), **arrays
        )
        file.flush()
        os.fsync(file.fileno())
    part.replace(record)


def is_record(path: Path) -> bool:
    """Whether a file holds verdicts, of whatever evaluation."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            return {"key", "costs", "clean"} <= set(saved)
    except Exception:  # a file of another kind fails in more ways than can be named
        return False


def restore(record: Path, key: str, known: Evaluation) -> None:
    """Takes over what `record` holds of the same evaluation; a damaged file is ignored.

    Raises ForeignRecordError for a sound file that holds something else.
    """
    try:
        with np.load(record, allow_pickle=False) as saved:
            held = str(saved["key"]) if "key" in saved else ""
            if held != key:
                raise ForeignRecordError(f"{str(record)!r} holds {difference(held, key)}")
            costs = {name: Cost(**cost) for name, cost in json.loads(str(saved["costs"])).items()}
            flags = json.loads(str(saved["flags"]))
            verdicts = {
                name: torch.from_numpy(saved[name])
                for name in saved
                if name.startswith(("robust_", "control_"))
            }
    except ForeignRecordError:
        raise
    except Exception:  # a damaged archive fails in more ways than can be named
        return
    known.cost.update(costs)
    known.robust.update(
        {name[7:]: verdict for name, verdict in verdicts.items() if name.startswith("robust_")}
    )
    known.control.update(
        {name[8:]: verdict for name, verdict in verdicts.items() if name.startswith("control_")}
    )
    known.flags, known.probed = flags["found"], flags["probed"]


def difference(held: str, wanted: str) -> str:
    """What sets a record apart from the one wanted, in words."""
    try:
        there, here = json.loads(held), json.loads(wanted)
        apart = [
            f"{name} {there[name]}, not {here[name]}" for name in here if there[name] != here[name]
        ]
    except (ValueError, KeyError, TypeError):
        return "no verdicts"
    if apart and not apart[0].startswith("sha256"):
        return f"another evaluation: {apart[0]}"
    return "verdicts on another model, other images or by other attacks"
