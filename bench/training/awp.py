"""Adversarial weight perturbation (AWP), an option on any method.

Paper: Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed(
    net: nn.Module, state: nn.Module, loss: Callable[[], Tensor], gamma: float
) -> Iterator[None]:
    """Moves each weight matrix W of `net` by gamma |W| g / |g|, g the gradient of `loss()`, and takes it back at the end.

    Biases and BatchNorm's factors stay. Evaluating the loss leaves no trace: buffers of `state`, which holds `net` and
    whatever else the loss moves, are put back. With gamma = 0 nothing is done.
    """
    if not gamma:
        yield
        return
    buffers = [(buffer, buffer.clone()) for buffer in state.buffers()]
    weights = [value for value in net.parameters() if value.ndim > 1 and value.requires_grad]
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for buffer, was in buffers:
            buffer.copy_(was)
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.add_(gradient * (gamma * weight.norm() / gradient.norm().clamp(min=1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, was in zip(weights, before, strict=True):
                weight.copy_(was)
