"""A clock of its own for a module, so that its waiting takes no time."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest


def pretend_time(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[float]:
    """Replace the module's `time`, in which sleeping moves the clock; return what it shows."""
    now = [0.0]
    pretended = SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    monkeypatch.setattr(module, "time", pretended)
    return now
