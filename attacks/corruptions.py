"""Common corruptions as a non-adversarial control: noise, blur, contrast and JPEG at five severities, on any device.

Parameters are those of CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019) for Gaussian noise, Gaussian blur, contrast
and JPEG compression; JPEG is its quantisation of 8x8 cosine coefficients with chroma at half resolution, without the
lossless coding, which changes no pixel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

STRENGTH = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels
    "contrast": (
        0.75,
        0.5,
        0.4,
        0.3,
        0.15,
    ),  # factor of the distance from the image's mean, channel by channel
    "jpeg": (80.0, 65.0, 58.0, 50.0, 40.0),  # quality
}
# ITU-T T.81, annex K: quantisation of luminance and chrominance at quality 50
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)  # ITU-R BT.601, as in JFIF


def corrupt(x: Tensor, kind: str, severity: int) -> Tensor:
    """Images (N, C, H, W) in [0, 1], corrupted; severity 1 to 5. Noise is drawn from the global random state."""
    strength = STRENGTH[kind][severity - 1]
    match kind:
        case "noise":
            changed = x + strength * torch.randn(x.shape, device=x.device)
        case "blur":
            changed = gaussian_blur(x, [2 * math.ceil(4 * strength) + 1] * 2, [strength, strength])
        case "contrast":
            mean = x.mean(dim=(2, 3), keepdim=True)
            changed = (x - mean) * strength + mean
        case _:
            changed = jpeg(x, strength)
    return changed.clamp(0, 1)


def jpeg(x: Tensor, quality: float) -> Tensor:
    """What JPEG at a quality from 1 to 100 makes of RGB or grey images."""
    *_, height, width = x.shape
    x = F.pad(255 * x, (0, -width % 16, 0, -height % 16), mode="replicate")
    if x.shape[1] != 3:
        return _quantised(x - 128, table(LUMA, quality, x))[..., :height, :width].add(128).div(255)
    matrix = x.new_tensor(YCBCR)
    planes = torch.einsum("kc,nchw->nkhw", matrix, x)
    luma = _quantised(planes[:, :1] - 128, table(LUMA, quality, x))
    chroma = _quantised(F.avg_pool2d(planes[:, 1:], 2), table(CHROMA, quality, x))
    planes = torch.cat([luma + 128, F.interpolate(chroma, scale_factor=2, mode="bilinear")], dim=1)
    return (
        torch.einsum("kc,nchw->nkhw", matrix.inverse(), planes)[..., :height, :width]
        .round()
        .div(255)
    )


def table(base: tuple[tuple[int, ...], ...], quality: float, like: Tensor) -> Tensor:
    """The quantisation table at a quality, by the rule of the Independent JPEG Group: (8, 8)."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((like.new_tensor(base) * scale + 50) / 100).floor().clamp(1, 255)


def _quantised(planes: Tensor, steps: Tensor) -> Tensor:
    """Planes whose 8x8 cosine coefficients are rounded to multiples of `steps`."""
    n, c, height, width = planes.shape
    dct = _cosines(planes)
    blocks = planes.view(n, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    rounded = (dct @ blocks @ dct.T / steps).round() * steps
    return (dct.T @ rounded @ dct).transpose(3, 4).reshape(n, c, height, width)


def _cosines(like: Tensor) -> Tensor:
    """The orthonormal cosine transform of length 8: (8, 8)."""
    k = torch.arange(8, device=like.device, dtype=like.dtype)
    matrix = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
