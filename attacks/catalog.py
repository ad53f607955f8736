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


@dataclass(frozen=True)
class Attack:
    """One component of a named attack.

    kind: a case of `build.build_attack`, or a class of torchattacks that takes eps, alpha and
    steps. steps: iterations, for Square queries. step: the step size at eps = 8/255, if it has one.
    restarts: random restarts, for CW-L2 rounds of the search for c. eot: passes that a gradient is
    averaged over.
    """

    # A verdict file hashes the repr: another field or order would make old files foreign.
    kind: str
    steps: int
    step: float | None = None
    restarts: int = 1
    eot: int = 1


@dataclass(frozen=True)
class NamedAttack:
    """All that is stated of an attack.

    about: what it does, and its source. passes: of the network for an image, forward and backward,
    about, where half of the images are robust. norms: those in which it is defined. transferable:
    whether it returns its last iterate even if that does not fool, so that a surrogate can be
    attacked.
    """

    components: tuple[Attack, ...]
    about: str
    passes: int
    norms: tuple[str, ...] = ("Linf", "L2")
    transferable: bool = False


# Minimum-norm attacks look for the nearest adversarial example, inside the ball or not.
MINIMUM_NORM = ("deepfool", "cw-l2")
# With fewer classes the loss is undefined.
MIN_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}

ATTACKS: dict[str, NamedAttack] = {
    "fgsm": NamedAttack(
        (Attack("fgsm", 1),),
        "one signed step of eps, no random start (Goodfellow et al. 2015)",
        passes=2,
        norms=("Linf",),
        transferable=True,
    ),
    "pgd10": NamedAttack(
        (Attack("pgd", 10, 2 / 255),),
        "10 steps of 2/255, uniform start, cross-entropy, last iterate (Madry et al. 2018)",
        passes=20,
        transferable=True,
    ),
    "pgd20": NamedAttack(
        (Attack("pgd", 20, 2 / 255),),
        "20 steps of 2/255, uniform start, cross-entropy, last iterate; the literature's PGD_SAT",
        passes=40,
        transferable=True,
    ),
    "pgd50": NamedAttack(
        (Attack("pgd", 50, 2 / 255),),
        "50 steps of 2/255, as above",
        passes=100,
        transferable=True,
    ),
    "pgd100": NamedAttack(
        (Attack("pgd", 100, 2 / 255),),
        "100 steps of 2/255, as above",
        passes=200,
        transferable=True,
    ),
    "pgd20_trades": NamedAttack(
        (Attack("pgd", 20, 0.003),),
        "20 steps of 0.003, uniform start, cross-entropy, last iterate; "
        "the literature's PGD_TRADES",
        passes=40,
        transferable=True,
    ),
    "cw_inf": NamedAttack(
        (Attack("cw", 30, 2 / 255),),
        "30 steps of 2/255, uniform start, on the margin max_{c != y} z_c - z_y, last iterate",
        passes=60,
        transferable=True,
    ),
    "mifgsm": NamedAttack(
        (Attack("mifgsm", 10, 2 / 255),),
        "10 steps of 2/255 with momentum 1; an image whose gradient vanishes "
        "stays where it is (Dong et al. 2018)",
        passes=20,
        norms=("Linf",),
        transferable=True,
    ),
    "tpgd": NamedAttack(
        (Attack("tpgd", 20, 2 / 255),),
        "20 steps of 2/255 on the KL divergence from the clean prediction (Zhang et al. 2019)",
        passes=42,
        norms=("Linf",),
        transferable=True,
    ),
    "eotpgd": NamedAttack(
        (Attack("eotpgd", 20, 2 / 255, eot=10),),
        "20 steps of 2/255, each on the mean of 10 gradients, for randomised "
        "models (Athalye et al. 2018)",
        passes=400,
        norms=("Linf",),
    ),
    "deepfool": NamedAttack(
        (Attack("deepfool", 50),),
        "nearest boundary by linearisation, 50 steps; L2 (Moosavi-Dezfooli et al. 2016)",
        passes=550,
        norms=("L2",),
    ),
    "cw_l2": NamedAttack(
        (Attack("cw-l2", 1000, restarts=9),),
        "9 rounds of 1,000 Adam steps of 0.01 in tanh space, kappa 0; L2 (Carlini and Wagner 2017)",
        passes=18_000,
        norms=("L2",),
    ),
    "apgd_ce": NamedAttack(
        (Attack("apgd-ce", 100),),
        "Auto-PGD on the cross-entropy, 100 steps (Croce and Hein 2020)",
        passes=110,
    ),
    "apgd_dlr": NamedAttack(
        (Attack("apgd-dlr", 100),),
        "Auto-PGD on the untargeted DLR loss, 100 steps",
        passes=110,
    ),
    "apgd_t": NamedAttack(
        (Attack("apgd-t", 100),),
        "Auto-PGD on the targeted DLR loss, 100 steps, 9 targets",
        passes=950,
    ),
    "fab_t": NamedAttack(
        (Attack("fab-t", 100),),
        "FAB, 100 steps, 9 targets (Croce and Hein 2020)",
        passes=1400,
    ),
    "square": NamedAttack(
        (Attack("square", 5000),),
        "Square, 5,000 queries: no gradients (Andriushchenko et al. 2020)",
        passes=2600,
    ),
    "aa": NamedAttack(
        (
            Attack("apgd-ce", 100),
            Attack("apgd-t", 100),
            Attack("fab-t", 100),
            Attack("square", 5000),
        ),
        "AutoAttack standard: APGD-CE, APGD-T, FAB-T (100 steps, 9 targets), "
        "Square (5,000 queries)",
        passes=4000,
    ),
    "aa_plus": NamedAttack(
        (
            Attack("apgd-ce", 100, restarts=5),
            Attack("apgd-dlr", 100, restarts=5),
            Attack("fab", 100, restarts=5),
            Attack("square", 5000),
            Attack("apgd-t", 100),
            Attack("fab-t", 100),
        ),
        "AutoAttack plus: five restarts of APGD-CE, APGD-DLR and FAB, then Square, APGD-T, FAB-T",
        passes=8000,
    ),
    "aa_rand": NamedAttack(
        (Attack("apgd-ce", 100, eot=20), Attack("apgd-dlr", 100, eot=20)),
        "AutoAttack rand, for randomised models: APGD-CE and APGD-DLR on the mean of 20 gradients",
        passes=5000,
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
    return ATTACKS[name].transferable


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
    components = ATTACKS[name].components
    if len(components) > 1:
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
