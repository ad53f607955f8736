"""Catalogue entries -> torchattacks objects, with the official budgets and without torchattacks' known defects."""

from __future__ import annotations

from typing import Any

import torchattacks

from attacks.catalog import NORMS, Attack
from attacks.components import APGD, APGDT, CWL2, MarginPGD
from attacks.fab import FAB, FABT
from attacks.square import Square, SquareL2
from attacks.view import View

REFERENCE_EPS = 8 / 255
MAX_TARGETS = 9  # the official AutoAttack's, also for more than ten classes


def check(attack: Attack, norm: str, pixels: tuple[int, ...]) -> None:
    """Raises ValueError where an attack has no form for a norm, or for images of so few pixels."""
    if norm not in NORMS[attack.kind]:
        raise ValueError(f"{attack.kind} is an attack in {NORMS[attack.kind][0]}, not in {norm}")
    if attack.kind == "square" and (len(set(pixels)) > 1 or (norm == "L2" and min(pixels) < 5)):
        shape = "x".join(map(str, pixels))
        raise ValueError(
            f"Square needs images as wide as high, in L2 of at least 5x5 pixels; these are {shape}"
        )


def build(
    attack: Attack,
    model: View,
    eps: float,
    num_classes: int,
    seed: int,
    norm: str = "Linf",
    batch_size: int = 250,
) -> Any:
    """The torchattacks object of one component against `model`; `check` says what there is none for.

    batch_size: images that are attacked at once at most, in FAB-T pairs of an image and a target.
    """
    steps, targets = attack.steps, min(num_classes - 1, MAX_TARGETS)
    if attack.step and norm == "Linf":
        budget = {"eps": eps, "alpha": attack.step * eps / REFERENCE_EPS, "steps": steps}
    else:
        budget = {"eps": eps, "alpha": 2.5 * eps / steps, "steps": steps}
    common = {"norm": norm, "eps": eps, "seed": seed, "n_restarts": attack.restarts}
    match attack.kind:
        case "fgsm":
            return torchattacks.FGSM(model, eps=eps)
        case "pgd":
            return (torchattacks.PGD if norm == "Linf" else torchattacks.PGDL2)(
                model, **budget, random_start=True
            )
        case "cw":
            return MarginPGD(model, norm, **budget)
        case "mifgsm":
            return torchattacks.MIFGSM(model, **budget, decay=1.0)
        case "tpgd":
            return torchattacks.TPGD(model, **budget)
        case "eotpgd":
            return torchattacks.EOTPGD(model, **budget, eot_iter=attack.eot, random_start=True)
        case "deepfool":
            return torchattacks.DeepFool(model, steps=steps, overshoot=0.02)
        case "cw-l2":
            return CWL2(model, steps, attack.restarts)
        case "apgd-ce" | "apgd-dlr":
            return APGD(model, **common, steps=steps, loss=attack.kind[5:], eot_iter=attack.eot)
        case "apgd-t":
            apgd = APGDT(model, **common, steps=steps, loss="dlr")
            apgd.n_target_classes = targets
            return apgd
        case "fab":
            return FAB(model, **common, steps=steps, n_classes=targets + 1)
        case "fab-t":
            return FABT(model, batch_size, **common, steps=steps, n_classes=targets + 1)
        case "square":
            # the official schedule of p is written for 10,000 queries and not rescaled to 5,000
            square = Square if norm == "Linf" else SquareL2
            return square(model, **common, n_queries=steps, resc_schedule=False)
