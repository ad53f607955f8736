"""A network of others as a `Net`: any module that takes images and returns logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.datasets import Dataset
from bench.system.errors import UsageError, one_line
from methods.base import Net


class Adapted(Net):
    """A module whose last linear layer is the head and whose rest makes the features.

    The layer moves out of the module, which then returns what the layer reads. Images are
    normalised by the data set's statistics, unless the module has a true `normalises`. A grey
    image has its channel repeated for a module that starts with a convolution of colours.
    """

    def __init__(self, module: nn.Module, info: Dataset) -> None:
        statistics = info.mean, info.std
        if getattr(module, "normalises", False):
            statistics = (0.0,) * len(info.mean), (1.0,) * len(info.std)
        super().__init__(*statistics)
        self.num_classes = info.num_classes
        stem = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
        self.channels = stem.in_channels if stem else info.shape[0]
        images = torch.zeros(2, self.channels, *info.shape[1:])
        self.linear_name, layer = find_classifier(module, images, info)
        module.set_submodule(self.linear_name, nn.Identity())
        self.trunk, self.last_linear, self.width = module, layer, layer.in_features

    def features(self, x: Tensor) -> Tensor:
        images = self.normalise(x).expand(-1, self.channels, -1, -1)
        features: Tensor = self.trunk(images)
        # Auxiliary classifiers. Written so that a tracer's stand-in for a tensor passes.
        if isinstance(features, tuple | list | dict):
            raise UsageError(
                f"in training the network returns {type(features).__name__}, no logits"
            )
        return features

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.last_linear(f)
        return logits

    def module_names(self) -> dict[str, str]:
        """Return the names of tensors in the module's own checkpoints and what they are here."""
        names = {}
        for name in self.state_dict():
            part, _, rest = name.partition(".")
            if part in ("trunk", "last_linear"):
                names[rest if part == "trunk" else f"{self.linear_name}.{rest}"] = name
        return names


def find_classifier(module: nn.Module, images: Tensor, info: Dataset) -> tuple[str, nn.Linear]:
    """Return the linear layer that makes the logits, and its name. Raise UsageError without one."""
    calls: list[tuple[nn.Module, Any]] = []

    def note_call(layer: nn.Module, _: Any, output: Any) -> None:
        calls.append((layer, output))

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(note_call) for layer in layers]
    try:
        with torch.no_grad():
            logits = module.eval()(images)
    # The code of others raises any error, on images of another size than it was made for say.
    except Exception as error:
        fault = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"it cannot classify {info.name}: {fault}") from error
    finally:
        module.train()
        for hook in hooks:
            hook.remove()
    shape = len(images), info.num_classes
    if not isinstance(logits, Tensor) or logits.shape != shape:
        kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"it returns {kind} for {info.name}, not logits of shape {shape}")
    if not calls:
        raise UsageError("it has no linear layer, whose input would be its features")
    last = calls[-1][0]
    if calls[-1][1] is not logits or [layer for layer, _ in calls].count(last) > 1:
        fault = "its logits are not what its last linear layer returns"
        raise UsageError(f"{fault}, whose input would be its features")
    name = next(name for name, layer in module.named_modules() if layer is last)
    assert isinstance(last, nn.Linear)
    return name, last


def as_net(network: nn.Module, info: Dataset) -> Net:
    """Return a network as it is if it is a `Net`, else adapted to one."""
    if isinstance(network, Net):
        return network
    if not isinstance(network, nn.Module):
        raise UsageError(f"it is {type(network).__name__}, not a module of torch")
    return Adapted(network, info)
