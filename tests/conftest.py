"""What several files share: a store that holds everything a store can hold, and which tests stay in one process."""

from __future__ import annotations

import pandas as pd
import pytest
from test_leaderboards import Store, fill

from leaderboards import store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`pytest -n`) a file's tests, which share fixtures, stay in one; whole programs go anywhere."""
    for item in items:
        assert isinstance(item, pytest.Function)
        if not item.get_closest_marker("e2e") or {"folder", "store"} & {*item.fixturenames}:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    fill(Store(uri, folder / "artifacts"))
    return uri


@pytest.fixture(scope="session")
def runs(uri: str) -> pd.DataFrame:
    return store.collect(uri)
