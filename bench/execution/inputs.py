"""The data of a run, fetched where it is missing and loaded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from bench.datasets.files.fetching import download_size, fetch_data, is_missing
from bench.datasets.loading import load_data
from bench.datasets.splits import Data
from bench.system.log import LOGGER
from leaderboards.schema.spec import Spec

# (spec, test=True) -> Data
LoadData = Callable[..., Data]


def cached_loader(root: Path) -> LoadData:
    """Return a function that loads the data of a spec: `load(spec, test=True)`.

    It keeps what it has loaded: many runs share a data set. Without `test` the test images are
    not read.
    """

    @cache
    def load_limited(name: str, limits: tuple[int | None, ...], test: bool) -> Data:
        if is_missing(name, root):
            LOGGER.info(f"{name} is not under {root}: fetching it, {download_size(name)}")
            fetch_data(name, root)
        return load_data(name, root, *limits, test=test)

    def load_spec(spec: Spec, test: bool = True) -> Data:
        limits = (spec.limit_train, spec.limit_test, spec.limit_val)
        return load_limited(spec.dataset, limits, test)

    return load_spec
