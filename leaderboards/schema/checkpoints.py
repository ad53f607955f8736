"""The checkpoints of a run: the one list that training, pages and leaderboards share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint that is evaluated.

    Args:
        name: of its file, without `.pt`, and in the tag of its checksum, `sha256.NAME`.
        metric_prefix: of the names of its test metrics, as in `test/clean`.
        label: in tables and figures.
    """

    name: str
    metric_prefix: str
    label: str


_BEST = Checkpoint("best", "test", "best")
_LAST = Checkpoint("last", "test_last", "last")
_EMA = Checkpoint("ema", "test_ema", "EMA")
_SWA = Checkpoint("swa", "test_swa", "SWA")
# By name, in the order of evaluation.
CHECKPOINTS = {checkpoint.name: checkpoint for checkpoint in (_BEST, _LAST, _EMA, _SWA)}
