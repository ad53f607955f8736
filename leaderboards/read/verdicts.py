"""The verdicts of AutoAttack on single images, read back from the artifacts of a run."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from leaderboards.read import artifacts
from leaderboards.schema import record

if TYPE_CHECKING:
    import numpy as np

    from leaderboards.stats.rank import Flags

FILE = "verdicts/verdicts_best_aa.npz"
FLAGS = "robust_aa"
WRONG = "its verdicts on single images do not give the recorded accuracy"


class VerdictError(ValueError):
    """Why there are no verdicts to rank by; one line."""


def read(runs: Iterable[Mapping[str, Any]], metric: str) -> Flags:
    """Seed x image: whether the image survived, for every run that has `metric`, the accuracy they must add up to.

    Raises VerdictError where a file is missing, damaged, or not that of its run; one is enough.
    """
    import numpy as np

    scored = [(of(run["artifact_uri"]), run[metric]) for run in runs if 0 <= run[metric] <= 1]
    if any(abs(float(flags.mean()) - accuracy) > record.AGREE for flags, accuracy in scored):
        raise VerdictError(WRONG)
    if len({flags.size for flags, _ in scored}) != 1:
        raise VerdictError("its seeds were judged on different numbers of images")
    return np.stack([flags for flags, _ in scored])


def of(uri: str) -> Flags:
    """The verdicts of the run whose artifacts lie at `uri`. Raises VerdictError."""
    import numpy as np

    try:
        if record.holds(uri):
            return record.at(uri).survived
        with zipfile.ZipFile(io.BytesIO(artifacts.read(uri, FILE))) as archive:
            content = archive.read(f"{FLAGS}.npy")  # no other array is read
        start = 10 + int.from_bytes(content[8:10], "little")
        shape, dtype = _header(content[:start])
        flags = np.frombuffer(content, dtype, offset=start).reshape(shape)
    except Exception as error:  # stores and damaged archives fail in more ways than can be named
        raise VerdictError("its verdicts on single images cannot be read") from error
    if flags.dtype != np.bool_ or flags.ndim != 1 or not flags.size:
        raise VerdictError(WRONG)
    return flags


@lru_cache(maxsize=64)
def _header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and kind of an array in the format npy, version 1.0; slow to read, and the same for thousands of runs."""
    from numpy.lib import format as npy

    file = io.BytesIO(content)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("another version")
    shape, _, dtype = npy.read_array_header_1_0(file)
    return shape, dtype
