"""Fixtures of several files: records with everything they can hold, and a short AutoAttack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from record_store import Records
from test_leaderboards import fill

from attacks import ATTACKS, Attack
from leaderboards.read.records import collect

QUICK = (Attack("apgd-ce", 3), Attack("apgd-t", 3), Attack("fab-t", 3), Attack("square", 30))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that run the complete program first.

    If they came last, the other processes would be idle at the end.
    """
    end_to_end = {item.path for item in items if item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in end_to_end)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    fill(Records(folder))
    return folder


@pytest.fixture(scope="session")
def runs(folder: Path) -> pd.DataFrame:
    return collect(folder)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register a cascade of every AutoAttack component with a tiny budget as "quick"."""
    monkeypatch.setitem(ATTACKS, "quick", replace(ATTACKS["aa"], components=QUICK))
    return "quick"
