"""Convolutions of tiny images as matrix products: the same function, faster for few pixels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

# Larger matrices are slower than the convolution; measured on a CPU.
MAX_MATRIX_ELEMENTS = 2**16

# Shapes of an input and of its output, without the batch.
Shapes = tuple[torch.Size, torch.Size]


class DenseConvolution(nn.Module):
    """A frozen convolution on images of one shape: (B, *shape_in) -> (B, *shape_out)."""

    matrix: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, shape_in: torch.Size, shape_out: torch.Size) -> None:
        super().__init__()
        weight, self.shape_out = conv.weight, shape_out
        without_bias = copy.deepcopy(conv)
        without_bias.bias = None
        unit_images = torch.eye(shape_in.numel(), dtype=weight.dtype, device=weight.device)
        matrix = without_bias(unit_images.view(-1, *shape_in)).flatten(1).contiguous()
        bias = weight.new_zeros(shape_out[0]) if conv.bias is None else conv.bias
        self.register_buffer("matrix", matrix)
        self.register_buffer("bias", bias.repeat_interleave(shape_out[1:].numel()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(1), self.matrix).view(-1, *self.shape_out)


@torch.no_grad()
def unroll_convolutions(net: nn.Module, sample: Tensor) -> nn.Module:
    """Replace the small convolutions of `net` for images shaped like `sample`: (B, C, H, W).

    Does nothing unless `sample` is on the CPU.
    """
    if sample.device.type != "cpu":
        return net
    convs = {name: module for name, module in net.named_modules() if type(module) is nn.Conv2d}
    for name, shapes in _observe_shapes(net, convs, sample).items():
        # A convolution of images of several shapes has no single matrix.
        if len(shapes) > 1:
            continue
        shape_in, shape_out = shapes.pop()
        # Building the matrix takes a square one of all unit images.
        if shape_in.numel() * max(shape_in.numel(), shape_out.numel()) <= MAX_MATRIX_ELEMENTS:
            net.set_submodule(name, DenseConvolution(convs[name], shape_in, shape_out))
    return net


def _observe_shapes(
    net: nn.Module, convs: dict[str, nn.Conv2d], sample: Tensor
) -> dict[str, set[Shapes]]:
    """Pass `sample` through `net` and return the shapes that each convolution works on."""
    shapes: dict[str, set[Shapes]] = {}
    names: dict[nn.Module, str] = {conv: name for name, conv in convs.items()}

    def observe(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        observed = shapes.setdefault(names[conv], set())
        observed.add((inputs[0].shape[1:], output.shape[1:]))

    hooks = [conv.register_forward_hook(observe) for conv in convs.values()]
    net(sample)
    for hook in hooks:
        hook.remove()
    return shapes
