"""Training images on the device: pixels as floats, random crops and mirroring."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def to_float(x: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in [0, 1]."""
    return x.float() / 255


def augment(x: Tensor, pad: int, flip: bool) -> Tensor:
    """Zero-pad and randomly crop each image of (B, C, H, W); mirror each with probability 1/2."""
    b, c, h, w = x.shape
    top, left = torch.randint(0, 2 * pad + 1, (2, b, 1), device=x.device)
    rows = top + torch.arange(h, device=x.device)
    columns = left + torch.arange(w, device=x.device)
    if flip:
        mirrored = torch.rand(b, 1, device=x.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(b, device=x.device)[:, None, None, None]
    channel = torch.arange(c, device=x.device)[None, :, None, None]
    return F.pad(x, (pad,) * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
