"""Encoded images as arrays of one size."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np

from bench.system.errors import BenchError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def decode(contents: Iterable[tuple[str, bytes]], shape: tuple[int, int, int]) -> Any:
    """Return images (N, C, H, W) of uint8. One of another size is cropped to the shape and resized.

    Args:
        contents: the name of each image, for messages, and its file's bytes.
        shape: (C, H, W).

    Raise BenchError for what is no image.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    images = []
    for name, content in contents:
        try:
            image = Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise BenchError(f"{name} is no image, or cut short") from error
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        images.append(np.asarray(image).reshape(height, width, channels))
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
