"""BatchNorm over whole batches where several processes have a part of each; torch's SyncBatchNorm runs on CUDA alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Any:
        return Sum.apply(gradient)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that in train mode normalises by the mean and variance of the images of all processes.

    Every process must take as many passes, in the same order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return super().forward(x)
        full = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        total = whole(
            torch.cat([full.sum(dim=(0, 2, 3)), full.new_full((1,), x.numel() / x.shape[1])])
        )
        count = total[-1]
        mean = total[:-1] / count
        centred = full - mean[:, None, None]
        variance = whole(centred.square().sum(dim=(0, 2, 3))) / count
        if (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        ):
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = (
                    1 / self.num_batches_tracked.to(mean)
                    if self.momentum is None
                    else self.momentum
                )
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1), share)
        found = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            found = found * self.weight[:, None, None] + self.bias[:, None, None]
        return found.to(x.dtype)


def whole(part: Tensor) -> Tensor:
    """The sum over all processes."""
    total: Tensor = Sum.apply(part)
    return total


def synchronise(module: nn.Module) -> str:
    """Makes every BatchNorm2d in `module` a SyncBatchNorm2d, with the same parameters and buffers; says so."""
    for inner in module.modules():
        if type(inner) is nn.BatchNorm2d:
            inner.__class__ = SyncBatchNorm2d
    return "BatchNorm synchronised"
