"""The named attacks and controls as values. No torch here.

A name stands for one or more components. Each runs on the images that are robust to those before.
Step sizes are stated for eps = 8/255 in l-inf and scale with eps: at 8/255 they are the published
ones. In L2 the step is 2.5 eps / steps, the rule of Madry's group.

`NAME@SURROGATE` is a transfer attack: its adversarial examples are made on another network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal

Kind = Literal[
    "fgsm", "pgd", "cw", "mifgsm", "tpgd", "eotpgd", "deepfool", "cw-l2",
    "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square",
]  # fmt: skip


@dataclass(frozen=True)
class Attack:
    """One component of a named attack.

    steps: iterations, for Square queries. step: the step size at eps = 8/255, if it has one.
    restarts: random restarts, for CW-L2 rounds of the search for c. eot: passes that a gradient is
    averaged over.
    """

    # A verdict file hashes the repr: another field or order would make old files foreign.
    kind: Kind
    steps: int
    step: float | None = None
    restarts: int = 1
    eot: int = 1


# Minimum-norm attacks look for the nearest adversarial example, inside the ball or not.
MINIMUM_NORM = ("deepfool", "cw-l2")
LINF_ONLY = ("fgsm", "mifgsm", "tpgd", "eotpgd")
# These return their last iterate, whether or not it fools the surrogate.
TRANSFERABLE = ("fgsm", "pgd", "cw", "mifgsm", "tpgd")
# With fewer classes the loss is undefined.
MIN_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}

AUTOATTACK = (
    Attack("apgd-ce", 100), Attack("apgd-t", 100), Attack("fab-t", 100), Attack("square", 5000),
)  # fmt: skip
PLUS = (
    Attack("apgd-ce", 100, restarts=5), Attack("apgd-dlr", 100, restarts=5),
    Attack("fab", 100, restarts=5), Attack("square", 5000),
    Attack("apgd-t", 100), Attack("fab-t", 100),
)  # fmt: skip
RAND = (Attack("apgd-ce", 100, eot=20), Attack("apgd-dlr", 100, eot=20))

ATTACKS: dict[str, tuple[Attack, ...]] = {
    "fgsm": (Attack("fgsm", 1),),
    "pgd10": (Attack("pgd", 10, 2 / 255),),
    "pgd20": (Attack("pgd", 20, 2 / 255),),
    "pgd50": (Attack("pgd", 50, 2 / 255),),
    "pgd100": (Attack("pgd", 100, 2 / 255),),
    "pgd20_trades": (Attack("pgd", 20, 0.003),),
    "cw_inf": (Attack("cw", 30, 2 / 255),),
    "mifgsm": (Attack("mifgsm", 10, 2 / 255),),
    "tpgd": (Attack("tpgd", 20, 2 / 255),),
    "eotpgd": (Attack("eotpgd", 20, 2 / 255, eot=10),),
    "deepfool": (Attack("deepfool", 50),),
    "cw_l2": (Attack("cw-l2", 1000, restarts=9),),
    "apgd_ce": (Attack("apgd-ce", 100),),
    "apgd_dlr": (Attack("apgd-dlr", 100),),
    "apgd_t": (Attack("apgd-t", 100),),
    "fab_t": (Attack("fab-t", 100),),
    "square": (Attack("square", 5000),),
    "aa": AUTOATTACK,
    "aa_plus": PLUS,
    "aa_rand": RAND,
}

ABOUT = {
    "fgsm": "one signed step of eps, no random start (Goodfellow et al. 2015)",
    "pgd10": "10 steps of 2/255, uniform start, cross-entropy, last iterate (Madry et al. 2018)",
    "pgd20": (
        "20 steps of 2/255, uniform start, cross-entropy, last iterate; the literature's PGD_SAT"
    ),
    "pgd50": "50 steps of 2/255, as above",
    "pgd100": "100 steps of 2/255, as above",
    "pgd20_trades": (
        "20 steps of 0.003, uniform start, cross-entropy, last iterate; the literature's PGD_TRADES"
    ),
    "cw_inf": (
        "30 steps of 2/255, uniform start, on the margin max_{c != y} z_c - z_y, last iterate"
    ),
    "mifgsm": "10 steps of 2/255 with momentum 1; an image whose gradient vanishes "
    "stays where it is (Dong et al. 2018)",
    "tpgd": "20 steps of 2/255 on the KL divergence from the clean prediction (Zhang et al. 2019)",
    "eotpgd": "20 steps of 2/255, each on the mean of 10 gradients, for randomised "
    "models (Athalye et al. 2018)",
    "deepfool": "nearest boundary by linearisation, 50 steps; L2 (Moosavi-Dezfooli et al. 2016)",
    "cw_l2": (
        "9 rounds of 1,000 Adam steps of 0.01 in tanh space, kappa 0; L2 (Carlini and Wagner 2017)"
    ),
    "apgd_ce": "Auto-PGD on the cross-entropy, 100 steps (Croce and Hein 2020)",
    "apgd_dlr": "Auto-PGD on the untargeted DLR loss, 100 steps",
    "apgd_t": "Auto-PGD on the targeted DLR loss, 100 steps, 9 targets",
    "fab_t": "FAB, 100 steps, 9 targets (Croce and Hein 2020)",
    "square": "Square, 5,000 queries: no gradients (Andriushchenko et al. 2020)",
    "aa": (
        "AutoAttack standard: APGD-CE, APGD-T, FAB-T (100 steps, 9 targets), Square (5,000 queries)"
    ),
    "aa_plus": (
        "AutoAttack plus: five restarts of APGD-CE, APGD-DLR and FAB, then Square, APGD-T, FAB-T"
    ),
    "aa_rand": (
        "AutoAttack rand, for randomised models: APGD-CE and APGD-DLR on the mean of 20 gradients"
    ),
}

CORRUPTIONS = ("noise", "blur", "contrast", "jpeg")
SEVERITIES = (1, 2, 3, 4, 5)
CONTROLS = {
    f"{kind}-{severity}": (kind, severity) for kind, severity in product(CORRUPTIONS, SEVERITIES)
}


def names() -> list[str]:
    """Return all attack names that `evaluate` accepts. Controls are named in CONTROLS."""
    return list(ATTACKS)


def is_transferable(name: str) -> bool:
    """Return whether an attack can run on a surrogate."""
    return ATTACKS[name][0].kind in TRANSFERABLE


def supported_norms(kind: Kind) -> tuple[str, ...]:
    """Return the norms in which a component is defined."""
    if kind in LINF_ONLY:
        return ("Linf",)
    if kind in MINIMUM_NORM:
        return ("L2",)
    return ("Linf", "L2")


def expand_names(chosen: Iterable[str]) -> list[str]:
    """Replace "corruptions" by the names of all controls."""
    expanded: list[str] = []
    for name in chosen:
        expanded.extend(CONTROLS if name == "corruptions" else [name])
    return expanded


def attack_components(name: str, num_classes: int) -> tuple[Attack, ...]:
    """Return the components of an attack on a model with `num_classes` outputs.

    AutoAttack keeps the components whose losses are defined: with three classes APGD-DLR replaces
    APGD-T, with two classes neither remains.

    Raises:
        ValueError: a single attack is undefined for so few classes.
    """
    components = ATTACKS[name]
    if name.startswith("aa"):
        return _defined_components(components, num_classes)
    for component in components:
        needed = MIN_CLASSES.get(component.kind, 2)
        if num_classes < needed:
            raise ValueError(f"{name} needs at least {needed} classes, the model has {num_classes}")
    return components


def _defined_components(components: tuple[Attack, ...], num_classes: int) -> tuple[Attack, ...]:
    defined = []
    for component in components:
        if num_classes >= MIN_CLASSES.get(component.kind, 2):
            defined.append(component)
        elif component.kind == "apgd-t" and num_classes == 3:
            defined.append(Attack("apgd-dlr", component.steps))
    return tuple(defined)
