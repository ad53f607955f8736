"""Training as the authors' scripts do it, where several share it: (field, value, what is odd about it) each.

Fields are those of the harness's own description of training, `methods.base.RECIPE`.
"""

from __future__ import annotations

from typing import Any

Recipe = tuple[tuple[str, Any, str], ...]

LIGHT: Recipe = (("weight_decay", 2e-4, "less than half of this benchmark's"),)

# ARD, IAD, KDIGA and Fair-ARD
STUCK: Recipe = (
    ("epochs", 200, "as in the script"),
    ("schedule", "multistep", "as in the script"),
    ("milestones", (0.5,), "the second fall multiplies the base rate again, so it does nothing"),
    *LIGHT,
)

# RSLAD and what grew from its script
FALLS = (215 / 300, 260 / 300, 285 / 300)
LONGER: Recipe = (
    ("epochs", 300, "half as long again as the methods it is compared with"),
    ("schedule", "multistep", "as in the script"),
    ("milestones", FALLS, "the rate stays high for longer and falls three times"),
    *LIGHT,
)


def averaged(start: float) -> Recipe:
    """SWA from a share of the epochs on."""
    return (
        (
            "averaging",
            ("swa",),
            "the script reports the average; here it is kept beside and the suite's checkpoint ranks",
        ),
        ("swa_start", start, "as in the script, which estimates BatchNorm's statistics anew"),
    )


# PeerAiD: one epoch earlier than RSLAD, and the average from the first fall on
LATE: Recipe = (
    *LONGER[:2],
    ("milestones", (214 / 300, 259 / 300, 284 / 300), "three late falls"),
    *LIGHT,
    *averaged(214 / 300),
)
