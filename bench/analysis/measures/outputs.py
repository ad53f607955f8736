"""Logits of networks and their features by layer, averaged over space."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.isolation import full_precision
from bench.analysis.measures.findings import GapError
from leaderboards.schema.analysis import PENULTIMATE
from methods.base import Net

BATCH_SIZE = 250
# Features that vary less than this, relative to their length, are constant up to rounding.
MIN_VARIATION = 1e-6
Resolution = tuple[int, int]


@dataclass(frozen=True)
class Outputs:
    """Outputs of a network for N images, in double precision on the CPU.

    logits: (N, C). features: (N, width) by layer: "stage1", "stage2", ... from input to output, and
    PENULTIMATE if the network has it. resolutions: height and width of each stage.
    """

    logits: Tensor
    features: dict[str, Tensor]
    resolutions: dict[str, Resolution]


@torch.no_grad()
def collect_outputs(net: Net, x: Tensor, batch_size: int = BATCH_SIZE) -> Outputs:
    """Return logits and features of images x: (N, C, H, W), of a network in eval mode.

    A stage is the last 4-D output of a module at a resolution. Resolutions of 1x1, and those at
    which no convolution but the network's first one ends, are left out: they are pooled features,
    weights of channels, attention, or patches of the image.

    Raises:
        GapError: without images, or for logits or features that are not finite.
    """
    check_images(x)
    logits, features, resolutions = [], [], list[Resolution]()
    with full_precision():
        for images in torch.split(x, batch_size):
            with record_stages(net) as (pooled, convolved):
                batch_logits, penultimate = logits_and_features(net, images)
            resolutions = [size for size in pooled if size in convolved[1:] and size != (1, 1)]
            layers = {f"stage{i}": pooled[size] for i, size in enumerate(resolutions, 1)}
            if penultimate is not None:
                layers[PENULTIMATE] = penultimate.flatten(1)
            logits.append(batch_logits)
            features.append({name: layer.double().cpu() for name, layer in layers.items()})
    joined = {name: torch.cat([batch[name] for batch in features]) for name in features[0]}
    if not all(layer.isfinite().all() for layer in joined.values()):
        raise GapError("the network returns features that are not finite")
    stages = [name for name in joined if name != PENULTIMATE]
    return Outputs(join_logits(logits), joined, dict(zip(stages, resolutions, strict=True)))


@torch.no_grad()
def collect_logits(net: nn.Module, x: Tensor, batch_size: int = BATCH_SIZE) -> Tensor:
    """Return logits (N, C) of images, in double precision on the CPU. Raises as above."""
    check_images(x)
    with full_precision():
        return join_logits([net(images) for images in torch.split(x, batch_size)])


def is_correct(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which images are classified correctly: (N,). Raises as `check_labels` too."""
    logits = collect_logits(net, x)
    check_labels(logits, y)
    return logits.argmax(dim=1).to(y.device) == y


def check_images(x: Tensor) -> None:
    """Raise GapError without images."""
    if not len(x):
        raise GapError("no images")


def join_logits(batches: list[Tensor]) -> Tensor:
    """Return the logits of all images. Raise GapError if they are not finite."""
    logits = torch.cat(batches).double().cpu()
    if not logits.isfinite().all():
        raise GapError("the network returns logits that are not finite")
    return logits


def logits_and_features(net: Net, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return logits and penultimate features, None for a network that defines none."""
    try:
        features = net.features(x)
    except NotImplementedError:
        return net(x), None
    return net.head(features), features


@contextmanager
def record_stages(net: Net) -> Iterator[tuple[dict[Resolution, Tensor], list[Resolution]]]:
    """Collect what a forward pass makes of an image on its way.

    Yields the last 4-D output at each resolution, averaged over space, in the order in which the
    resolutions are reached, and the resolution of each convolution's output.
    """
    pooled: dict[Resolution, Tensor] = {}
    convolved: list[Resolution] = []

    def note_output(layer: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            resolution = output.shape[2], output.shape[3]
            # Averaged at once: the next layer may write into the output.
            pooled[resolution] = output.mean(dim=(2, 3))
            if isinstance(layer, nn.Conv2d):
                convolved.append(resolution)

    hooks = [layer.register_forward_hook(note_output) for layer in net.modules()]
    try:
        yield pooled, convolved
    finally:
        for hook in hooks:
            hook.remove()


def pair_layers(student: Outputs, teacher: Outputs) -> dict[str, str]:
    """Return the teacher's layer for each of the student's: stages of one resolution."""
    stages = {resolution: name for name, resolution in teacher.resolutions.items()}
    pairs = {
        name: stages[resolution]
        for name, resolution in student.resolutions.items()
        if resolution in stages
    }
    if PENULTIMATE in student.features and PENULTIMATE in teacher.features:
        pairs[PENULTIMATE] = PENULTIMATE
    return pairs


def check_labels(logits: Tensor, y: Tensor) -> None:
    """Raise GapError if labels (N,) are no classes of logits (N, C), or there is one class."""
    classes = logits.shape[1]
    if classes < 2:
        raise GapError("the network has a single output")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise GapError(f"labels go from {y.min()} to {y.max()}, the network has {classes} classes")


def check_same_classes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise GapError if student and teacher have another number of classes."""
    classes, teacher_classes = student_logits.shape[1], teacher_logits.shape[1]
    if classes != teacher_classes:
        raise GapError(f"the teacher has {teacher_classes} classes, the student {classes}")


def varies(values: Tensor, dim: int | None = None) -> Tensor:
    """Return whether values (N, width) vary over images: all together, or along `dim` each."""
    variation = torch.linalg.norm(values - values.mean(dim=0), dim=dim)
    enough: Tensor = variation > MIN_VARIATION * torch.linalg.norm(values, dim=dim)
    return enough
