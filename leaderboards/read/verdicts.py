"""The verdicts of AutoAttack on single images, read from the artifacts of a run."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from leaderboards.read.artifacts import read_artifact
from leaderboards.read.record_files import is_record_uri, read_record_uri
from leaderboards.schema.record import ACCURACY_TOLERANCE, Verdicts

VERDICTS_FILE = "verdicts/verdicts_best_aa.npz"
ARRAY_NAME = "robust_aa"
WRONG_MEAN = "its verdicts on single images do not give the recorded accuracy"


class VerdictError(ValueError):
    """There are no verdicts to rank by; the message is one line."""


def read_row_verdicts(uris: Sequence[str], accuracies: Sequence[float]) -> Verdicts:
    """Return (seeds, images) of the runs whose artifacts lie at `uris`.

    accuracies: what the verdicts of each run must add up to; NaN for a run without verdicts.
    Raises VerdictError where a file of any run is missing, damaged, or not that of its run, or
    where the runs were judged on different numbers of images.
    """
    verdicts, expected = [], []
    for uri, accuracy in zip(uris, accuracies, strict=True):
        if 0 <= accuracy <= 1:
            verdicts.append(read_verdicts(uri))
            expected.append(accuracy)
    for survived, accuracy in zip(verdicts, expected, strict=True):
        if abs(float(survived.mean()) - accuracy) > ACCURACY_TOLERANCE:
            raise VerdictError(WRONG_MEAN)
    try:
        return np.stack(verdicts)
    except ValueError as error:
        raise VerdictError("its seeds were judged on different numbers of images") from error


def read_verdicts(uri: str) -> Verdicts:
    """Return (images,) bool of the run whose artifacts lie at `uri`. Raises VerdictError."""
    try:
        if is_record_uri(uri):
            return read_record_uri(uri).survived
        with zipfile.ZipFile(io.BytesIO(read_artifact(uri, VERDICTS_FILE))) as archive:
            # np.load would read the other arrays, too.
            content = archive.read(f"{ARRAY_NAME}.npy")
        start = 10 + int.from_bytes(content[8:10], "little")
        shape, dtype = _read_header(content[:start])
        survived = np.frombuffer(content, dtype, offset=start).reshape(shape)
    # Stores and damaged archives fail in more ways than can be named.
    except Exception as error:
        raise VerdictError("its verdicts on single images cannot be read") from error
    if survived.dtype != np.bool_ or survived.ndim != 1 or not survived.size:
        raise VerdictError(WRONG_MEAN)
    return survived


# Slow to parse, and the same for thousands of runs.
@lru_cache(maxsize=64)
def _read_header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of an array in the format npy, version 1.0."""
    file = io.BytesIO(content)
    if npy_format.read_magic(file) != (1, 0):
        raise ValueError("another version")
    shape, _, dtype = npy_format.read_array_header_1_0(file)
    return shape, dtype
