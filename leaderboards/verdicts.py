"""The verdicts of AutoAttack on single images, read back from the artifacts of a run."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

from leaderboards import artifacts

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
    flags = [_one(str(uri), float(value)) for uri, value in zip(scored["artifact_uri"], scored[metric], strict=True)]
    if len({line.size for line in flags}) != 1:
        raise VerdictError("its seeds were judged on different numbers of images")
    return np.stack(flags)


def _one(uri: str, accuracy: float) -> Flags:
    import numpy as np

    try:
        with (
            zipfile.ZipFile(io.BytesIO(artifacts.read(uri, FILE))) as archive,
            archive.open(f"{FLAGS}.npy") as file,
        ):  # no other array is read
            flags = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # stores and damaged archives fail in more ways than can be named
        raise VerdictError("its verdicts on single images cannot be read") from error
    if flags.dtype != np.bool_ or flags.ndim != 1 or not flags.size or abs(float(flags.mean()) - accuracy) > 1e-5:
        raise VerdictError("its verdicts on single images do not give the recorded accuracy")
    return flags
