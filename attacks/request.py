"""Check what is to be evaluated: every refusal is a ValueError that names the value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.attacked_model import frozen_copy, perturbation_norm
from attacks.build import Settings, check_pixels
from attacks.catalog import ATTACKS, CONTROLS, attack_components, is_transferable

Surrogates = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Target:
    """The model under attack, and the surrogates of transfer attacks by name.

    reference_model: a frozen copy in full precision, the only one whose verdict counts.
    """

    net: nn.Module
    reference_model: nn.Module
    surrogates: Surrogates

    def source(self, name: str) -> nn.Module:
        """Return the network that an attack makes its adversarial examples on."""
        return self.surrogates[name.partition("@")[2]] if "@" in name else self.net


def check_request(
    chosen: list[str], surrogates: Surrogates, x: Tensor, y: Tensor, settings: Settings, probes: int
) -> None:
    """Raise ValueError for a name, a number or a tensor that cannot be used."""
    for name in chosen:
        _check_name(name, surrogates)
    if x.ndim != 4 or y.shape != x.shape[:1] or y.dtype != torch.int64:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)} {y.dtype}"
        needed = "images must be (N, C, H, W) with as many int64 labels (N,)"
        raise ValueError(f"{needed}, these are {shapes}")
    if 0 in x.shape[1:]:
        raise ValueError(f"images of no pixels: {tuple(x.shape)}")
    _check_settings(settings, x)
    if probes < 0:
        raise ValueError(f"probes = {probes}: 0, which leaves the flags out, or more")
    height, width = x.shape[2:]
    if min(height, width) < 5 and any(name.startswith("blur-") for name in chosen):
        raise ValueError(f"blur needs images of at least 5x5 pixels, these are {height}x{width}")
    if not len(x):
        return
    # Written so that NaN is refused too.
    if x.dtype != torch.float32 or not (x.amin() >= 0 and x.amax() <= 1):
        pixels = f"{x.dtype} in [{x.amin():.3g}, {x.amax():.3g}]"
        raise ValueError(f"images must be float32 in [0, 1], these are {pixels}")


def name_examples(images: Mapping[str, Tensor], x: Tensor, settings: Settings) -> dict[str, Tensor]:
    """Return adversarial examples that others made of x by the name of their verdicts.

    Raise ValueError for what is none: each must be an image of the ball.
    """
    examples = {}
    for name, adv in images.items():
        examples[f"images@{name}"] = adv = adv.detach().to(x.device).contiguous()
        _check_examples(adv, x, settings)
    return examples


def _check_examples(adv: Tensor, x: Tensor, settings: Settings) -> None:
    if adv.shape != x.shape or adv.dtype != torch.float32:
        shapes = f"{adv.dtype} {tuple(adv.shape)}"
        raise ValueError(f"adversarial examples must be float32 {tuple(x.shape)}, not {shapes}")
    pixels, distance = adv.flatten(1), perturbation_norm(adv - x, settings.norm)
    ball = f"in the ball of eps {settings.eps:.6g} ({settings.norm}) around their test images"
    # The last one allows for what float32 rounds.
    rules = {
        "finite": pixels.isfinite().all(dim=1),
        "in [0, 1]": ((pixels >= 0) & (pixels <= 1)).all(dim=1),
        ball: distance <= settings.radius,
    }
    for rule, is_kept in rules.items():
        wrong = (~is_kept).nonzero().flatten().tolist()
        if wrong:
            lowest, highest = pixels[wrong[0]].aminmax()
            first = f"image {wrong[0]} has values in [{lowest:.6g}, {highest:.6g}]"
            message = f"{len(wrong)} of {len(adv)} are not: {first}, {distance[wrong[0]]:.6g} away"
            raise ValueError(f"adversarial examples must be {rule}; {message}")


def _check_name(name: str, surrogates: Surrogates) -> None:
    base, at, surrogate = name.partition("@")
    if base not in ATTACKS and name not in CONTROLS:
        raise ValueError(f"unknown attack {name!r}: choose from {', '.join(ATTACKS)}, corruptions")
    if at and surrogate not in surrogates:
        raise ValueError(f"{name}: no surrogate {surrogate!r} was given")
    if at and not is_transferable(base):
        able = ", ".join(filter(is_transferable, ATTACKS))
        reason = f"{base} stops where the surrogate is fooled"
        raise ValueError(f"{name}: {reason}; these transfer: {able}")


def _check_settings(settings: Settings, x: Tensor) -> None:
    eps, norm, seed, batch_size = settings.eps, settings.norm, settings.seed, settings.batch_size
    if norm not in ("Linf", "L2"):
        raise ValueError(f"norm {norm!r}: Linf or L2")
    largest = largest_eps(x, norm)
    if not 0 <= eps <= largest:
        raise ValueError(f"eps = {eps} is outside [0, {largest:.4g}], which holds the whole cube")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed = {seed}: between 0 and 2^63 - 1")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: at least 1")


def largest_eps(x: Tensor, norm: str) -> float:
    """Return the radius of the ball around any image that holds all images of this shape."""
    return 1.0 if norm == "Linf" else float(x.shape[1:].numel() ** 0.5)


def check_model(target: Target, x: Tensor, y: Tensor, chosen: list[str], norm: str) -> int:
    """Return the number of classes. Raise ValueError for a model that cannot be evaluated."""
    classes = _count_classes(target.reference_model, x, "the model")
    lowest, highest = y.amin(), y.amax()
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels go from {lowest} to {highest}, the model has {classes} outputs")
    if classes < 2:
        raise ValueError("the model has a single output: there is no other class to be taken for")
    for name, surrogate in target.surrogates.items():
        outputs = _count_classes(copy_model(surrogate), x, f"surrogate {name}")
        if outputs != classes:
            raise ValueError(f"surrogate {name} has {outputs} outputs, the model {classes}")
    for name in chosen:
        if name not in CONTROLS:
            base = name.partition("@")[0]
            norms = ATTACKS[base].norms
            if norm not in norms:
                raise ValueError(f"{base} is an attack in {norms[0]}, not in {norm}")
            for component in attack_components(base, classes):
                check_pixels(component, norm, tuple(x.shape[2:]))
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
        cause = f"{type(error).__name__}: {first_line}"
        raise ValueError(f"{role} fails on images {tuple(x.shape[1:])}: {cause}") from error


@torch.no_grad()
def predict_classes(net: nn.Module, x: Tensor) -> Tensor:
    """Return the predicted classes (N,). Raise ValueError unless the logits are finite, (N, K)."""
    logits = net(x)
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model must return logits (N, K), not {type(logits).__name__}")
    if logits.ndim != 2 or len(logits) != len(x):
        raise ValueError(f"the model must return logits (N, K), not {tuple(logits.shape)}")
    # No verdict can come from NaN: argmax would take it for the largest logit.
    finite = logits.isfinite().all(dim=1)
    if not finite.all():
        images = f"{int((~finite).sum())} of {len(x)} images"
        raise ValueError(f"the model returned NaN or inf for {images}: there is no verdict on them")
    return logits.argmax(dim=1)


def copy_model(net: nn.Module) -> nn.Module:
    """Return a frozen copy. Raise ValueError if the model cannot be copied."""
    try:
        return frozen_copy(net)
    # Copying runs the model's own code, which may raise anything.
    except Exception as error:
        raise ValueError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
