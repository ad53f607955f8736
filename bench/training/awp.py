"""Adversarial weight perturbation (AWP), an option of any method.

Paper: Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization",
NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALLEST_NORM = 1e-12


@contextmanager
def perturbed_weights(
    net: nn.Module, module: nn.Module, compute_loss: Callable[[], Tensor], gamma: float
) -> Iterator[None]:
    """Move each weight matrix W of `net` by gamma |W| g / |g| inside the block.

    Biases and BatchNorm's factors stay.

    Args:
        net: the network whose weights move.
        module: holds `net` and whatever else the loss moves. Its buffers are put back after the
            loss, so evaluating it leaves no trace.
        compute_loss: its gradient is g.
        gamma: the size of the step relative to the weights. With 0 nothing is done.
    """
    if not gamma:
        yield
        return
    buffers = [*module.buffers()]
    saved_buffers = [buffer.clone() for buffer in buffers]
    weights = [value for value in net.parameters() if value.ndim > 1 and value.requires_grad]
    gradients = torch.autograd.grad(compute_loss(), weights, allow_unused=True)
    saved_weights = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for buffer, value in zip(buffers, saved_buffers, strict=True):
            buffer.copy_(value)
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is None:
                continue
            length = gradient.norm().clamp(min=SMALLEST_NORM)
            weight.add_(gradient * (gamma * weight.norm() / length))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, saved_weights, strict=True):
                weight.copy_(value)
