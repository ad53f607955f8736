"""The verdicts of AutoAttack on single images, read back from the artifacts of a run."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

from leaderboards import artifacts, record

if TYPE_CHECKING:
    import pandas as pd

    from leaderboards.rank import Flags

FILE = "verdicts/verdicts_best_aa.npz"
FLAGS = "robust_aa"


class VerdictError(ValueError):
    """Why there are no verdicts to rank by; one line."""


def read(runs: pd.DataFrame, metric: str) -> Flags:
    """Seed x image: whether the image survived, for every run that has `metric`, the accuracy they must add up to.

    Raises VerdictError where a file is missing, damaged, or not that of its run; one is enough.
    """
    import numpy as np

    scored = runs[runs[metric].between(0, 1)]
    flags = [of(str(uri)) for uri in scored["artifact_uri"]]
    if any(abs(float(line.mean()) - told) > record.AGREE for line, told in zip(flags, scored[metric], strict=True)):
        raise VerdictError("its verdicts on single images do not give the recorded accuracy")
    if len({line.size for line in flags}) != 1:
        raise VerdictError("its seeds were judged on different numbers of images")
    return np.stack(flags)


def of(uri: str) -> Flags:
    """The verdicts of the run whose artifacts lie at `uri`. Raises VerdictError."""
    import numpy as np

    try:
        if record.holds(uri):
            return record.at(uri).survived
        content = io.BytesIO(artifacts.read(uri, FILE))
        with zipfile.ZipFile(content) as archive, archive.open(f"{FLAGS}.npy") as file:  # no other array is read
            flags = np.lib.format.read_array(file, allow_pickle=False)
        if flags.dtype != np.bool_ or flags.ndim != 1 or not flags.size:
            raise ValueError(f"{flags.dtype} {flags.shape}")
    except Exception as error:  # stores and damaged archives fail in more ways than can be named
        raise VerdictError("its verdicts on single images cannot be read") from error
    return flags
