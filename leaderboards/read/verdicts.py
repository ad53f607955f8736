"""The verdicts of AutoAttack on single images, read from the artifacts of a run."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
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


def read_row_verdicts(runs: Iterable[Mapping[str, Any]], metric: str) -> Verdicts:
    """Return (seeds, images): whether each image survived, for every run that has `metric`.

    `metric` is the accuracy that the verdicts must add up to. Raises VerdictError where a file of
    any run is missing, damaged, or not that of its run.
    """
    verdicts = []
    for run in runs:
        if 0 <= run[metric] <= 1:
            verdicts.append((read_verdicts(run["artifact_uri"]), run[metric]))
    for survived, accuracy in verdicts:
        if abs(float(survived.mean()) - accuracy) > ACCURACY_TOLERANCE:
            raise VerdictError(WRONG_MEAN)
    if len({survived.size for survived, _ in verdicts}) != 1:
        raise VerdictError("its seeds were judged on different numbers of images")
    return np.stack([survived for survived, _ in verdicts])


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
