"""A store that holds everything a store can hold, for the tests that only read it."""

from __future__ import annotations

import pandas as pd
import pytest
from test_leaderboards import Store, fill

from leaderboards import store


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    fill(Store(uri, folder / "artifacts"))
    return uri


@pytest.fixture(scope="session")
def runs(uri: str) -> pd.DataFrame:
    return store.collect(uri)
