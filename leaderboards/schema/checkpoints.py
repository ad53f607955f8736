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


# The name of the checkpoint that validation chose.
BEST = "best"
# By name, in the order of evaluation.
CHECKPOINTS = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint(BEST, "test", "best"),
        Checkpoint("last", "test_last", "last"),
        Checkpoint("ema", "test_ema", "EMA"),
        Checkpoint("swa", "test_swa", "SWA"),
    )
}
