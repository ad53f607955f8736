"""Names and labels of the metrics that tables show."""

from __future__ import annotations

from leaderboards.schema.checkpoints import CHECKPOINTS

# AutoAttack on the checkpoint that validation chose.
RANK_METRIC = "test/aa"
TRAIN_SECONDS = "cost/train_seconds"
ATTACK_LABELS = {
    "clean": "Clean",
    "aa": "AutoAttack",
    "worst": "Worst",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd20_trades": "PGD-20 (0.003)",
    "cw_inf": "CW-inf",
}
# By the prefix of their metrics, the best one first.
CHECKPOINT_LABELS = {
    checkpoint.metric_prefix: checkpoint.label for checkpoint in CHECKPOINTS.values()
}
