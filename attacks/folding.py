"""A faster copy of a model for attacks: BatchNorm folded, channels last, small convolutions as matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from attacks.dense_convolution import unroll_convolutions

# Relative to the largest logit.
LOGIT_TOLERANCE = 1e-4
# Relative, in L2. Rounding flips single ReLUs; another backward pass changes the whole gradient.
GRADIENT_TOLERANCE = 0.05


def fold_model(model: nn.Module, sample: Tensor, gradient: Tensor) -> nn.Module:
    """Return a faster model, or `model` if that changes its logits or its gradient.

    sample: (B, C, H, W); gradient: the `mixture_gradient` of `model` there.
    """
    # Tracing forgets custom backward passes (BPDA) and freezes random choices. So logits, input
    # gradient and repeated logits are compared.
    try:
        folded = unroll_convolutions(fuse(model).to(memory_format=torch.channels_last), sample)
        with torch.no_grad():
            logits, folded_logits = model(sample), folded(sample)
            repeated = [model(sample), model(sample)]
        folded_gradient = mixture_gradient(folded, sample)
    # Tracing fails in many ways on models that are not plain graphs, and folding is only for speed.
    except Exception:
        return model
    if folded_gradient is None:
        return model
    gradient_change = (gradient - folded_gradient).norm()
    logit_change = (logits - folded_logits).abs().max()
    # Written so that NaN refuses the folded model.
    same_gradient = gradient_change <= GRADIENT_TOLERANCE * gradient.norm()
    same_logits = logit_change <= LOGIT_TOLERANCE * logits.abs().max()
    repeatable = all(torch.equal(logits, repeat) for repeat in repeated)
    if same_gradient and same_logits and repeatable:
        return folded
    return model


def mixture_gradient(model: nn.Module, x: Tensor) -> Tensor | None:
    """Return the input gradient of a fixed combination that depends on every logit."""
    return input_gradient(model, x, _mix_logits)


def input_gradient(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return the gradient of the summed loss of the logits for images x: (B, ...).

    None if no graph leads to the images.
    """
    with torch.inference_mode(False), torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        logits = model(images)
        if not logits.requires_grad:
            return None
        return torch.autograd.grad(loss(logits).sum(), images, allow_unused=True)[0]


def _mix_logits(logits: Tensor) -> Tensor:
    return logits * torch.linspace(-1, 2, logits.shape[1], device=logits.device, dtype=logits.dtype)
