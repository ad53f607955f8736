"""Make a model faster: fold BatchNorm, channels last, small convolutions as matrix products."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

# Relative to the largest logit.
LOGIT_TOLERANCE = 1e-4
# Relative, in L2. Rounding flips single ReLUs; another backward pass changes the whole gradient.
GRADIENT_TOLERANCE = 0.05
# Larger matrices are slower than the convolution; measured on a CPU.
MAX_MATRIX_ELEMENTS = 2**16


def fold_model(model: nn.Module, sample: Tensor, gradient: Tensor) -> nn.Module:
    """Return a faster model, or `model` if that changes its logits or its gradient.

    sample: (B, C, H, W); gradient: the `mixture_gradient` of `model` there.
    """
    # Tracing forgets custom backward passes (BPDA) and freezes random choices, so logits, input
    # gradients and repeated logits are compared.
    try:
        folded = unroll_convolutions(fuse(model).to(memory_format=torch.channels_last), sample)
        with torch.no_grad():
            logits, folded_logits = model(sample), folded(sample)
            repeats = model(sample), model(sample)
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
    repeatable = all(torch.equal(logits, repeat) for repeat in repeats)
    return folded if same_gradient and same_logits and repeatable else model


def mixture_gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    """Return the `input_gradient` of a fixed combination that depends on every logit."""

    def mix(logits: Tensor) -> Tensor:
        count, device = logits.shape[1], logits.device
        return logits * torch.linspace(-1, 2, count, device=device, dtype=logits.dtype)

    return input_gradient(model, x, mix)


def input_gradient(
    model: Callable[[Tensor], Tensor], x: Tensor, loss: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """Return the gradient of the summed loss at images x: (B, ...).

    None if the logits do not depend on them.
    """
    with torch.inference_mode(False), torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        logits = model(images)
        if not logits.requires_grad:
            return None
        return torch.autograd.grad(loss(logits).sum(), images, allow_unused=True)[0]


class DenseConvolution(nn.Module):
    """A frozen convolution on images of one shape: (B, *shape_in) -> (B, *shape_out)."""

    matrix: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, shape_in: torch.Size, shape_out: torch.Size) -> None:
        super().__init__()
        weight, self.shape_out = conv.weight, shape_out
        linear = copy.deepcopy(conv)
        linear.bias = None
        unit_images = torch.eye(shape_in.numel(), dtype=weight.dtype, device=weight.device)
        matrix = linear(unit_images.view(-1, *shape_in)).flatten(1).contiguous()
        bias = weight.new_zeros(shape_out[0]) if conv.bias is None else conv.bias
        self.register_buffer("matrix", matrix)
        self.register_buffer("bias", bias.repeat_interleave(shape_out[1:].numel()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(1), self.matrix).view(-1, *self.shape_out)


@torch.no_grad()
def unroll_convolutions(net: nn.Module, sample: Tensor) -> nn.Module:
    """Replace small convolutions of `net`, for images like `sample`: (B, C, H, W), on a CPU."""
    if sample.device.type != "cpu":
        return net
    convs = {name: module for name, module in net.named_modules() if type(module) is nn.Conv2d}
    names: dict[nn.Module, str] = {conv: name for name, conv in convs.items()}
    shapes: dict[str, set[tuple[torch.Size, torch.Size]]] = {name: set() for name in convs}

    def observe(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        shapes[names[conv]].add((inputs[0].shape[1:], output.shape[1:]))

    hooks = [conv.register_forward_hook(observe) for conv in convs.values()]
    net(sample)
    for hook in hooks:
        hook.remove()
    for name, conv in convs.items():
        # A convolution of images of several shapes has no single matrix.
        if len(shapes[name]) != 1:
            continue
        shape_in, shape_out = shapes[name].pop()
        # Building the matrix takes a square one of all unit images.
        if shape_in.numel() * max(shape_in.numel(), shape_out.numel()) <= MAX_MATRIX_ELEMENTS:
            net.set_submodule(name, DenseConvolution(conv, shape_in, shape_out))
    return net
