"""Running averages of a network: exponential ones, which move at each step (EMA), and means over epochs (SWA).

torch's AveragedModel does this too, but waits for a CUDA device at each step, and cannot average counters there.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """The average of a network's weights and BatchNorm statistics, as a network."""

    n_averaged: Tensor

    def __init__(self, net: nn.Module, decay: float | None = None) -> None:
        """decay: the share of the old average that a new state leaves; None: all states count alike."""
        super().__init__()
        self.module = copy.deepcopy(net)
        self.decay = decay
        self.register_buffer("n_averaged", torch.tensor(0))  # on the CPU, where it is read

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Moves the average; the first time it becomes the network itself."""
        share = (
            1 / (int(self.n_averaged) + 1)
            if self.decay is None or self.n_averaged == 0
            else 1 - self.decay
        )
        if share == 1:
            self.module.load_state_dict(net.state_dict())
        else:
            torch._foreach_lerp_(values(self.module), values(net), share)
        self.n_averaged += 1


def values(net: nn.Module) -> list[Tensor]:
    """Parameters and buffers but for counters."""
    return [value for value in (*net.parameters(), *net.buffers()) if value.is_floating_point()]
