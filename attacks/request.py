"""Check what is to be evaluated: every refusal is a ValueError that names the value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attacks.attacked_model import frozen_copy
from attacks.build import check_support
from attacks.catalog import ATTACKS, CONTROLS, attack_components, is_transferable


@dataclass(frozen=True)
class Settings:
    """Settings that all attacks of an evaluation share. Field names are keys of verdict files."""

    eps: float
    norm: str
    seed: int
    batch_size: int
    num_classes: int = 0


@dataclass(frozen=True)
class Target:
    """The model under attack and the surrogates of transfer attacks.

    reference_model: a frozen copy in full precision, the only one whose verdict counts.
    """

    net: nn.Module
    reference_model: nn.Module
    surrogates: Mapping[str, nn.Module] = field(default_factory=dict)

    def source(self, name: str) -> nn.Module:
        """Return the network that an attack makes its adversarial examples on."""
        return self.surrogates[name.partition("@")[2]] if "@" in name else self.net


def check_request(
    chosen: list[str],
    surrogates: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    settings: Settings,
    probes: int,
) -> None:
    """Raise ValueError for a name, a number or a tensor that cannot be used."""
    for name in chosen:
        _check_name(name, surrogates)
    _check_shapes(x, y)
    _check_numbers(x, settings, probes)
    if not len(x):
        return
    lowest, highest = x.amin(), x.amax()
    # Written so that NaN is refused too.
    if x.dtype != torch.float32 or not (lowest >= 0 and highest <= 1):
        raise ValueError(
            f"images must be float32 in [0, 1], these are {x.dtype} in "
            f"[{lowest:.3g}, {highest:.3g}]"
        )
    height, width = x.shape[2:]
    if min(height, width) < 5 and any(name.startswith("blur-") for name in chosen):
        raise ValueError(f"blur needs images of at least 5x5 pixels, these are {height}x{width}")


def _check_name(name: str, surrogates: Mapping[str, nn.Module]) -> None:
    base, at, surrogate = name.partition("@")
    if base not in ATTACKS and name not in CONTROLS:
        raise ValueError(f"unknown attack {name!r}: choose from {', '.join(ATTACKS)}, corruptions")
    if not at:
        return
    if surrogate not in surrogates:
        raise ValueError(f"{name}: no surrogate {surrogate!r} was given")
    if not is_transferable(base):
        able = ", ".join(filter(is_transferable, ATTACKS))
        raise ValueError(
            f"{name}: {base} stops where the surrogate is fooled; these transfer: {able}"
        )


def _check_shapes(x: Tensor, y: Tensor) -> None:
    if x.ndim != 4 or y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(
            "images must be (N, C, H, W) with as many int64 labels (N,), "
            f"these are {tuple(x.shape)} and {tuple(y.shape)} {y.dtype}"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"images of no pixels: {tuple(x.shape)}")


def _check_numbers(x: Tensor, settings: Settings, probes: int) -> None:
    if settings.norm not in ("Linf", "L2"):
        raise ValueError(f"norm {settings.norm!r}: Linf or L2")
    largest = largest_eps(x, settings.norm) if len(x) else math.inf
    if not 0 <= settings.eps <= largest:
        raise ValueError(
            f"eps = {settings.eps} is outside [0, {largest:.4g}], which holds the whole cube"
        )
    if not 0 <= settings.seed < 2**63:
        raise ValueError(f"seed = {settings.seed}: between 0 and 2^63 - 1")
    if probes < 0:
        raise ValueError(f"probes = {probes}: 0, which leaves the flags out, or more")
    if settings.batch_size < 1:
        raise ValueError(f"batch_size = {settings.batch_size}: at least 1")


def largest_eps(x: Tensor, norm: str) -> float:
    """Return the radius of the ball that holds all images of [0, 1] of this shape."""
    return 1.0 if norm == "Linf" else float(x[0].numel() ** 0.5)


def check_model(target: Target, x: Tensor, y: Tensor, chosen: list[str], settings: Settings) -> int:
    """Return the number of classes. Raise ValueError for a model that cannot be evaluated."""
    classes = _count_classes(target.reference_model, x, "the model")
    if y.amin() < 0 or y.amax() >= classes:
        raise ValueError(
            f"labels go from {y.amin()} to {y.amax()}, the model has {classes} outputs"
        )
    if classes < 2:
        raise ValueError("the model has a single output: there is no other class to be taken for")
    for name, surrogate in target.surrogates.items():
        outputs = _count_classes(copy_model(surrogate), x, f"surrogate {name}")
        if outputs != classes:
            raise ValueError(f"surrogate {name} has {outputs} outputs, the model {classes}")
    pixels = tuple(x.shape[2:])
    for name in chosen:
        if name in CONTROLS:
            continue
        for component in attack_components(name.partition("@")[0], classes):
            check_support(component, settings.norm, pixels)
    return classes


def _count_classes(net: nn.Module, x: Tensor, role: str) -> int:
    """Return the number of outputs of a network. Raise ValueError if it fails on these images."""
    try:
        predict_classes(net, x[:2])
        with torch.no_grad():
            return int(net(x[:2]).shape[1])
    except ValueError:
        raise
    # The network's own code may raise anything.
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"{role} fails on images {tuple(x.shape[1:])}: {type(error).__name__}: {first_line}"
        ) from error


@torch.no_grad()
def predict_classes(net: nn.Module, x: Tensor) -> Tensor:
    """Return the predicted classes (N,).

    Raises:
        ValueError: the output is not (N, K) or not finite: no verdict can come from NaN.
    """
    logits = net(x)
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model must return logits (N, K), not {type(logits).__name__}")
    if logits.ndim != 2 or len(logits) != len(x):
        raise ValueError(f"the model must return logits (N, K), not {tuple(logits.shape)}")
    finite = logits.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"the model returned NaN or inf for {int((~finite).sum())} of {len(x)} images: "
            "there is no verdict on them"
        )
    return logits.argmax(dim=1)


def copy_model(net: nn.Module) -> nn.Module:
    """Return a frozen copy. Raise ValueError if the model cannot be copied."""
    try:
        return frozen_copy(net)
    # Copying runs the model's own code, which may raise anything.
    except Exception as error:
        raise ValueError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
