"""Training as the authors' scripts do it, where methods share it; see `Method.recipe`."""

from typing import Any

Recipe = tuple[tuple[str, Any, str], ...]

LOW_WEIGHT_DECAY: Recipe = (("weight_decay", 2e-4, "less than half of this benchmark's"),)

# ARD, IAD, KDIGA and Fair-ARD
ONE_FALL_200_EPOCHS: Recipe = (
    ("epochs", 200, "as in the script"),
    ("schedule", "multistep", "as in the script"),
    ("milestones", (0.5,), "the second fall multiplies the base rate again, so it does nothing"),
    *LOW_WEIGHT_DECAY,
)

# RSLAD and what grew from its script
THREE_MILESTONES = (215 / 300, 260 / 300, 285 / 300)
EPOCHS_300: Recipe = (("epochs", 300, "half as long again as the methods it is compared with"),)
THREE_FALLS_300_EPOCHS: Recipe = (
    *EPOCHS_300,
    ("schedule", "multistep", "as in the script"),
    ("milestones", THREE_MILESTONES, "the rate stays high for longer and falls three times"),
    *LOW_WEIGHT_DECAY,
)


def average_from(start: float) -> Recipe:
    """Return the entries for SWA from a share of the epochs on."""
    return (
        ("averaging", ("swa",), "the script reports the average; here the suite decides"),
        ("swa_start", start, "as in the script, which estimates BatchNorm's statistics anew"),
    )


# KD, FitNet and CRD as CRD's authors train them
REPDISTILLER: Recipe = (
    ("epochs", 240, "more than the long suites here"),
    ("batch", 64, "half of the usual"),
    ("lr", 0.05, "half of the usual, at half of the batch"),
    ("schedule", "multistep", "as in the script"),
    ("milestones", (150 / 240, 180 / 240, 210 / 240), "three falls instead of two"),
    ("weight_decay", 5e-4, "as in the script"),
)
