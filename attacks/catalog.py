"""The named attacks as values. No torch here.

A name stands for one or more components, run one after the other on the images that the ones before left standing.
Step sizes are stated for eps = 8/255 and scale with eps, so that at 8/255 they are the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["fgsm", "pgd", "cw", "apgd-ce", "apgd-t", "fab-t", "square"]


@dataclass(frozen=True)
class Attack:
    """One component: what it is, its iterations (queries for Square), its step at eps = 8/255 where it has one."""

    kind: Kind
    steps: int
    step: float | None = None


AUTOATTACK = (Attack("apgd-ce", 100), Attack("apgd-t", 100), Attack("fab-t", 100), Attack("square", 5000))

ATTACKS: dict[str, tuple[Attack, ...]] = {
    "fgsm": (Attack("fgsm", 1),),
    "pgd20": (Attack("pgd", 20, 2 / 255),),
    "pgd20_trades": (Attack("pgd", 20, 0.003),),
    "cw_inf": (Attack("cw", 30, 2 / 255),),
    "aa": AUTOATTACK,
}

ABOUT = {
    "fgsm": "one signed step of eps, no random start (Goodfellow et al. 2015)",
    "pgd20": "20 steps of 2/255, uniform start, cross-entropy, last iterate; the literature's PGD_SAT",
    "pgd20_trades": "20 steps of 0.003, uniform start, cross-entropy, last iterate; the literature's PGD_TRADES",
    "cw_inf": "30 steps of 2/255, uniform start, on the margin max_{c != y} z_c - z_y, last iterate",
    "aa": "AutoAttack standard: APGD-CE, APGD-T, FAB-T (100 steps, 9 targets), Square (5,000 queries)",
}


def names() -> list[str]:
    """All attack names that `evaluate` accepts."""
    return list(ATTACKS)
