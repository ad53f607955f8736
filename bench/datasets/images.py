"""Encoded images as arrays of one size."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def decode(contents: Iterable[bytes], shape: tuple[int, int, int]) -> Any:
    """Return images (N, C, H, W) of uint8. One of another size is cropped to the shape and resized.

    Raise OSError or ValueError for what is no image.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    images = []
    for content in contents:
        image = Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        images.append(np.asarray(image).reshape(height, width, channels))
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
