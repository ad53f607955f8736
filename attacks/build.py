"""Build torchattacks objects from catalogue entries, with the official budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torchattacks

from attacks.attacked_model import AttackedModel
from attacks.catalog import Attack
from attacks.components.apgd import APGD, APGDT
from attacks.components.fab import FAB, FABT
from attacks.components.margin_attacks import CWL2, MarginPGD
from attacks.components.square import Square, SquareL2

REFERENCE_EPS = 8 / 255
# The official AutoAttack has nine targets, also for more than ten classes.
MAX_TARGETS = 9
# Verdict files from before there were two searches do not name theirs.
FIRST_SEARCH = {"search": "exact", "precision": "fp32"}


@dataclass(frozen=True)
class Settings:
    """Settings of all attacks of an evaluation. The field names are keys of verdict files.

    search: "exact", batch by batch as the official code, or "device" (attacks/search). precision:
    in which a device's search sees the network; the verdict is fp32's.
    """

    eps: float
    norm: str
    seed: int
    batch_size: int = 250
    num_classes: int = 0
    search: str = "exact"
    precision: str = "fp32"

    @property
    def radius(self) -> float:
        """The radius that adversarial examples may have: eps and what float32 rounds."""
        return self.eps * (1 + 1e-5) + 1e-6

    @property
    def num_targets(self) -> int:
        """The number of classes that a targeted attack aims at."""
        return min(self.num_classes - 1, MAX_TARGETS)

    @property
    def key(self) -> dict[str, Any]:
        """What a verdict file is of."""
        fields = vars(self).items()
        return {name: value for name, value in fields if FIRST_SEARCH.get(name) != value}


def check_pixels(attack: Attack, norm: str, pixels: tuple[int, ...]) -> None:
    """Raise ValueError if an attack is undefined for images of (height, width) `pixels`."""
    too_small = norm == "L2" and min(pixels) < 5
    if attack.kind == "square" and (len(set(pixels)) > 1 or too_small):
        needed = "Square needs images as wide as high, in L2 of at least 5x5 pixels"
        raise ValueError(f"{needed}; these are {'x'.join(map(str, pixels))}")


def build_attack(attack: Attack, model: AttackedModel, settings: Settings) -> Any:
    """Build the torchattacks object of one component. Call `check_pixels` first."""
    eps, norm, steps = settings.eps, settings.norm, attack.steps
    targets = settings.num_targets
    common = {"norm": norm, "eps": eps, "seed": settings.seed, "n_restarts": attack.restarts}
    match attack.kind:
        case "deepfool":
            return torchattacks.DeepFool(model, steps=steps, overshoot=0.02)
        case "cw-l2":
            return CWL2(model, steps, attack.restarts)
        case "apgd-ce" | "apgd-dlr":
            loss = attack.kind.removeprefix("apgd-")
            return APGD(model, **common, steps=steps, loss=loss, eot_iter=attack.eot)
        case "apgd-t":
            apgd = APGDT(model, **common, steps=steps, loss="dlr")
            apgd.n_target_classes = targets
            return apgd
        case "fab":
            return FAB(model, **common, steps=steps, n_classes=targets + 1)
        case "fab-t":
            batch_size = settings.batch_size
            return FABT(model, batch_size, **common, steps=steps, n_classes=targets + 1)
        case "square":
            square = Square if norm == "Linf" else SquareL2
            # The official schedule of p is that of 10,000 queries, also for 5,000.
            return square(model, **common, n_queries=steps, resc_schedule=False)
        case _:
            return _build_pgd(attack, model, settings)


def pgd_step_size(attack: Attack, settings: Settings) -> float:
    """Return the step of PGD and its kin: the stated one in l-inf, scaled with eps."""
    if attack.step and settings.norm == "Linf":
        return attack.step * settings.eps / REFERENCE_EPS
    return 2.5 * settings.eps / attack.steps


def _build_pgd(attack: Attack, model: AttackedModel, settings: Settings) -> Any:
    eps, norm = settings.eps, settings.norm
    budget = {"eps": eps, "alpha": pgd_step_size(attack, settings), "steps": attack.steps}
    match attack.kind:
        case "fgsm":
            return torchattacks.FGSM(model, eps=eps)
        case "cw":
            return MarginPGD(model, norm, **budget)
        case "mifgsm":
            return torchattacks.MIFGSM(model, **budget, decay=1.0)
        case "tpgd":
            return torchattacks.TPGD(model, **budget)
        case "eotpgd":
            return torchattacks.EOTPGD(model, **budget, eot_iter=attack.eot, random_start=True)
        case "pgd":
            pgd = torchattacks.PGD if norm == "Linf" else torchattacks.PGDL2
            return pgd(model, **budget, random_start=True)
        case _:
            return getattr(torchattacks, attack.kind)(model, **budget)
