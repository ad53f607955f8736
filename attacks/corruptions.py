"""Common corruptions as a control: noise, blur, contrast and JPEG at five severities.

Parameters are those of CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019), blur's those of its
Gaussian blur.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

# By severity: the noise's standard deviation; the blur's, in pixels; a factor of the distance from
# the image's mean, channel by channel; quality.
STRENGTH = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "jpeg": (80, 65, 58, 50, 40),
}


def corrupt_images(x: Tensor, kind: str, severity: int) -> Tensor:
    """Return corrupted images, (N, C, H, W) in [0, 1]; severity 1 to 5.

    Noise is drawn from the global random state.
    """
    strength = STRENGTH[kind][severity - 1]
    match kind:
        case "noise":
            corrupted = x + strength * torch.randn(x.shape, device=x.device)
        case "blur":
            size = 2 * math.ceil(4 * strength) + 1
            corrupted = transforms.gaussian_blur(x, [size, size], [strength, strength])
        case "contrast":
            mean = x.mean(dim=(2, 3), keepdim=True)
            corrupted = (x - mean) * strength + mean
        case _:
            corrupted = compress_jpeg(x, int(strength))
    return corrupted.clamp(0, 1)


def compress_jpeg(x: Tensor, quality: int) -> Tensor:
    """Compress images (N, C, H, W) in [0, 1] as JPEG, with a quality from 1 to 100.

    Three channels are RGB; otherwise each channel is a grey image.
    """
    # On the CPU, also for images on a device: there another encoder would give other pixels.
    levels = (255 * x).round().to("cpu", torch.uint8)
    if x.shape[1] != 3:
        levels = levels.flatten(0, 1).unsqueeze(1)
    compressed: Tensor = transforms.jpeg(levels, quality)
    return compressed.view(x.shape).to(x) / 255
