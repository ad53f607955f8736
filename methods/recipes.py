"""Training as the authors' scripts do it; see `Method.recipe`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Recipe = tuple[tuple[str, Any, str], ...]
AS_IN_THE_SCRIPT = "as in the script"

LAST_BATCH: Recipe = (
    ("drop_last", False, "an epoch's last batch is kept, of 80 images on CIFAR, at full weight"),
)
RAW_PIXELS: Recipe = (("normalise", False, "the student sees pixels from 0 to 1 as they are"),)
FREE_START: Recipe = (
    (
        "clamp_start",
        False,
        "attacks begin outside [0, 1] too: other images where pixels are 0 or 1",
    ),
)


def sgd(
    epochs: int,
    *falls: float,
    weight_decay: float,
    lr: float = 0.1,
    batch: int = 128,
    schedule: str = "multistep",
    why: Mapping[str, str] = MappingProxyType({}),
) -> Recipe:
    """Return the entries for SGD.

    falls: milestones as shares of the epochs. why: reasons for single entries.
    """
    values = {
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "milestones": falls,
    }
    entries = tuple(
        (name, value, why.get(name, AS_IN_THE_SCRIPT)) for name, value in values.items()
    )
    return (*entries, *LAST_BATCH)


def average_from(start: float) -> Recipe:
    """Return the entries for SWA from a share of the epochs on."""
    return (
        ("averaging", ("swa",), "the script reports the average; here the suite decides"),
        ("swa_start", start, "as in the script, which estimates BatchNorm's statistics anew"),
    )


# ARD, IAD, KDIGA and Fair-ARD
ONE_FALL_200_EPOCHS: Recipe = (
    *sgd(
        200,
        0.5,
        weight_decay=2e-4,
        why={"milestones": "the second fall multiplies the base rate again, so it does nothing"},
    ),
    *FREE_START,
)
# AdaAD, DGAD
TWO_FALLS_200_EPOCHS: Recipe = (*sgd(200, 0.5, 0.75, weight_decay=5e-4), *FREE_START)
# RSLAD and what grew from its script
THREE_MILESTONES = (215 / 300, 260 / 300, 285 / 300)
THREE_FALLS_300_EPOCHS: Recipe = (
    *sgd(
        300,
        *THREE_MILESTONES,
        weight_decay=2e-4,
        why={
            "epochs": "half as long again as the methods it is compared with",
            "milestones": "the rate stays high for longer and falls three times",
        },
    ),
    *FREE_START,
)
# KD, FitNet and CRD as CRD's authors train them
REPDISTILLER: Recipe = sgd(
    240,
    *(150 / 240, 180 / 240, 210 / 240),
    lr=0.05,
    batch=64,
    weight_decay=5e-4,
    why={
        "epochs": "more than the long suites here",
        "batch": "half of the usual",
        "lr": "half of the usual, at half of the batch",
        "milestones": "three falls instead of two",
    },
)
