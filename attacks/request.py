"""What can be evaluated: every refusal is a ValueError that names the value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attacks.build import check
from attacks.catalog import ATTACKS, CONTROLS, components, transfers
from attacks.view import frozen


@dataclass(frozen=True)
class Setting:
    """What every attack of one evaluation shares."""

    eps: float
    norm: str
    seed: int
    batch_size: int
    num_classes: int = 0


@dataclass(frozen=True)
class Target:
    """The model under attack, and where adversarial images for it come from."""

    net: nn.Module
    judge: nn.Module  # a frozen copy, in full precision: the only one whose verdict counts
    surrogates: Mapping[str, nn.Module] = field(default_factory=dict)

    def source(self, name: str) -> nn.Module:
        """The network that an attack of this name climbs on."""
        return self.surrogates[name.partition("@")[2]] if "@" in name else self.net


def check_request(
    chosen: list[str],
    surrogates: Mapping[str, nn.Module | None],
    x: Tensor,
    y: Tensor,
    setting: Setting,
    probes: int,
) -> None:
    """Raises ValueError naming the name, number or tensor that cannot be used."""
    for name in chosen:
        _check_name(name, surrogates)
    if setting.norm not in ("Linf", "L2"):
        raise ValueError(f"norm {setting.norm!r}: Linf or L2")
    if x.ndim != 4 or y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(
            f"images must be (N, C, H, W) with as many int64 labels (N,), these are {tuple(x.shape)} and "
            f"{tuple(y.shape)} {y.dtype}"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"images of no pixels: {tuple(x.shape)}")
    largest = 1.0 if setting.norm == "Linf" else x[0].numel() ** 0.5 if len(x) else math.inf
    if not 0 <= setting.eps <= largest:
        raise ValueError(
            f"eps = {setting.eps} is outside [0, {largest:.4g}], which holds the whole cube"
        )
    if not 0 <= setting.seed < 2**63:
        raise ValueError(f"seed = {setting.seed}: between 0 and 2^63 - 1")
    if probes < 0:
        raise ValueError(f"probes = {probes}: 0, which leaves the flags out, or more")
    if setting.batch_size < 1:
        raise ValueError(f"batch_size = {setting.batch_size}: at least 1")
    if len(x) and (
        x.dtype != torch.float32 or not (x.amin() >= 0 and x.amax() <= 1)
    ):  # false for NaN too
        raise ValueError(
            f"images must be float32 in [0, 1], these are {x.dtype} in [{x.amin():.3g}, {x.amax():.3g}]"
        )
    if min(x.shape[2:]) < 5 and any(CONTROLS.get(name, " ")[0] == "blur" for name in chosen):
        raise ValueError(
            f"blur needs images of at least 5x5 pixels, these are {x.shape[2]}x{x.shape[3]}"
        )


def _check_name(name: str, surrogates: Mapping[str, nn.Module | None]) -> None:
    """Raises ValueError for an attack that does not exist or cannot be transferred."""
    base, at, surrogate = name.partition("@")
    if base not in ATTACKS and name not in CONTROLS:
        raise ValueError(f"unknown attack {name!r}: choose from {', '.join(ATTACKS)}, corruptions")
    if at and surrogates[surrogate] is None:
        raise ValueError(f"{name}: no surrogate {surrogate!r} was given")
    if at and not transfers(base):
        able = ", ".join(filter(transfers, ATTACKS))
        raise ValueError(
            f"{name}: {base} stops where the surrogate is fooled; these transfer: {able}"
        )


def check_model(target: Target, x: Tensor, y: Tensor, chosen: list[str], setting: Setting) -> int:
    """Number of classes; raises ValueError for a model that cannot be evaluated so."""
    classes = _classes(target.judge, x, "the model")
    if y.amin() < 0 or y.amax() >= classes:
        raise ValueError(
            f"labels go from {y.amin()} to {y.amax()}, the model has {classes} outputs"
        )
    if classes < 2:
        raise ValueError("the model has a single output: there is no other class to be taken for")
    for name, surrogate in target.surrogates.items():
        found = _classes(private(surrogate), x, f"surrogate {name}")
        if found != classes:
            raise ValueError(f"surrogate {name} has {found} outputs, the model {classes}")
    for name in chosen:
        for part in () if name in CONTROLS else components(name.partition("@")[0], classes):
            check(part, setting.norm, tuple(x.shape[2:]))
    return classes


def _classes(net: nn.Module, x: Tensor, what: str) -> int:
    """How many outputs a network has for these images. Raises ValueError where it has none."""
    try:
        predict(net, x[:2])
        with torch.no_grad():
            return int(net(x[:2]).shape[1])
    except ValueError:
        raise
    except Exception as error:  # its own code fails on these images
        cause = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{what} fails on images {tuple(x.shape[1:])}: {type(error).__name__}: {cause}"
        ) from error


@torch.no_grad()
def predict(judge: nn.Module, x: Tensor) -> Tensor:
    """Classes (N,). Raises ValueError for what is not finite logits (N, K): no verdict can come from NaN."""
    logits = judge(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model must return logits (N, K), not {found}")
    if not logits.isfinite().all():
        bad = int((~logits.isfinite().all(dim=1)).sum())
        raise ValueError(
            f"the model returned NaN or inf for {bad} of {len(x)} images: there is no verdict on them"
        )
    return logits.argmax(dim=1)


def private(net: nn.Module) -> nn.Module:
    """The model's private copy. Raises ValueError where there can be none."""
    try:
        return frozen(net)
    except Exception as error:  # copying runs the model's own code
        raise ValueError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
