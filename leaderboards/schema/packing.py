"""Verdicts and classes of single test images, packed into short texts for a record."""

from __future__ import annotations

import base64
import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

# (images,) or (seeds, images): whether each test image survived AutoAttack.
Verdicts: TypeAlias = NDArray[np.bool_]
Classes: TypeAlias = NDArray[np.uint16]


def pack_verdicts(verdicts: Verdicts) -> str:
    """Return (images,) bool as base64 of packed bits."""
    return base64.b64encode(np.packbits(verdicts).tobytes()).decode()


def unpack_verdicts(text: str, images: int) -> Verdicts:
    """Return (images,) bool. Raises ValueError for another number of bits."""
    content = base64.b64decode(text, validate=True)
    if len(content) != -(-images // 8):
        raise ValueError(f"verdicts: {8 * len(content)} bits for {images} images")
    packed = np.frombuffer(content, dtype=np.uint8)
    return np.unpackbits(packed, count=images).astype(np.bool_)


def pack_classes(classes: Classes) -> str:
    """Return (images,) classes below 65,536 as base64 of zlib of little-endian 16-bit numbers."""
    return base64.b64encode(zlib.compress(classes.astype("<u2").tobytes(), 9)).decode()


def unpack_classes(text: str, images: int) -> Classes:
    """Return (images,) classes. Raises ValueError for another number of them."""
    reader = zlib.decompressobj()
    try:
        # A small text may stand for gigabytes.
        content = reader.decompress(base64.b64decode(text, validate=True), 2 * images + 1)
    except zlib.error as error:
        raise ValueError(f"classes of images: {error}") from error
    if len(content) != 2 * images:
        raise ValueError(f"classes of images: not those of {images} images")
    return np.frombuffer(content, dtype="<u2")
