"""Which search attacks use, and in which precision it sees the network."""

from __future__ import annotations

import torch

SEARCHES = ("exact", "device")
PRECISIONS = ("fp32", "tf32", "bf16")
AUTO = "auto"


def choose_search(search: str, precision: str, device: torch.device) -> tuple[str, str]:
    """Return the search and its precision, where "auto" is what suits the device.

    Raises ValueError for one that does not exist, or that the device lacks.
    """
    if search == AUTO:
        search = "device" if device.type == "cuda" else "exact"
    if search not in SEARCHES:
        raise ValueError(f"search = {search!r}: {AUTO}, {', '.join(SEARCHES)}")
    if precision == AUTO:
        precision = "tf32" if search == "device" and has_tf32(device) else "fp32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r}: {AUTO}, {', '.join(PRECISIONS)}")
    if precision != "fp32" and search == "exact":
        raise ValueError(f"precision = {precision!r}: an exact search is in fp32")
    if precision == "tf32" and not has_tf32(device):
        raise ValueError(f"a search in TF32: this device ({device.type}) has none")
    return search, precision


def has_tf32(device: torch.device) -> bool:
    """Return whether a device computes float32 products in TF32 where it may."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
