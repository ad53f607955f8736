"""Averages of a network: exponential over steps (EMA) and plain over epochs (SWA)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class AveragedNetwork(nn.Module):
    """The average of a network's weights and BatchNorm statistics, as a network."""

    # torch's AveragedModel does the same but waits for a CUDA device at each step, and it
    # cannot average counters there.
    n_averaged: Tensor

    def __init__(self, net: nn.Module, decay: float | None = None) -> None:
        """Start from a copy of `net`.

        Args:
            net: the network whose states are averaged.
            decay: the share of the old average that a new state leaves. With None all states
                count alike.
        """
        super().__init__()
        self.module = copy.deepcopy(net)
        self.decay = decay
        # It stays on the CPU, where it is read.
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the state of `net`; the first state becomes the average."""
        share = 1 / (int(self.n_averaged) + 1)
        if self.decay is not None and self.n_averaged > 0:
            share = 1 - self.decay
        if share == 1:
            self.module.load_state_dict(net.state_dict())
        else:
            torch._foreach_lerp_(float_tensors(self.module), float_tensors(net), share)
        self.n_averaged += 1


def float_tensors(net: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers except counters."""
    tensors = [*net.parameters(), *net.buffers()]
    return [tensor for tensor in tensors if tensor.is_floating_point()]
