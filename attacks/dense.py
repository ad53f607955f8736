"""Convolutions of tiny images as matrices: the same function, in less time than a convolution of few pixels takes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

LARGEST = (
    2**16
)  # elements of a matrix, up to which it is faster than the convolution; measured on a CPU


class Dense(nn.Module):
    """A frozen convolution on images of one shape: (B, *given) -> (B, *shape)."""

    matrix: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, given: torch.Size, shape: torch.Size) -> None:
        super().__init__()
        weight, self.shape = conv.weight, shape
        plain = copy.deepcopy(conv)
        plain.bias = None
        pixels = torch.eye(given.numel(), dtype=weight.dtype, device=weight.device).view(-1, *given)
        bias = weight.new_zeros(shape[0]) if conv.bias is None else conv.bias
        self.register_buffer("matrix", plain(pixels).flatten(1).contiguous())
        self.register_buffer("bias", bias.repeat_interleave(shape[1:].numel()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(1), self.matrix).view(-1, *self.shape)


@torch.no_grad()
def unrolled(net: nn.Module, sample: Tensor) -> nn.Module:
    """`net` with its small convolutions exchanged, for images shaped like `sample`: (B, C, H, W); on a CPU alone."""
    if sample.device.type != "cpu":
        return net
    shapes: dict[str, set[tuple[torch.Size, torch.Size]]] = {}
    convs = {name: module for name, module in net.named_modules() if type(module) is nn.Conv2d}

    def watched(name: str) -> Callable[..., None]:
        def note(_: nn.Module, given: tuple[Tensor], made: Tensor) -> None:
            shapes.setdefault(name, set()).add((given[0].shape[1:], made.shape[1:]))

        return note

    hooks = [conv.register_forward_hook(watched(name)) for name, conv in convs.items()]
    net(sample)
    for hook in hooks:
        hook.remove()
    for name, found in shapes.items():
        (given, made), *others = found
        if (
            not others and given.numel() * max(given.numel(), made.numel()) <= LARGEST
        ):  # what makes it is square
            net.set_submodule(name, Dense(convs[name], given, made))
    return net
