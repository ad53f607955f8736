"""Run one component of an attack as a search for devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from attacks.attacked_model import AttackedModel
from attacks.build import MAX_TARGETS, Settings
from attacks.catalog import Attack
from attacks.search.apgd import APGDSearch
from attacks.search.fab import FABSearch
from attacks.search.passes import Passes, Precision
from attacks.search.pgd import PGDSearch
from attacks.search.slots import Search, Slots
from attacks.search.square import SquareSearch
from attacks.search.square_l2 import SquareL2Search

SEARCHES = {
    "apgd-ce": APGDSearch, "apgd-dlr": APGDSearch, "apgd-t": APGDSearch,
    "fab-t": FABSearch, "square": SquareSearch, "pgd": PGDSearch, "cw": PGDSearch,
}  # fmt: skip


def search_class(kind: str, norm: str) -> type[Search] | None:
    """Return the search of a kind of attack, None where there is only the exact one."""
    if (kind, norm) == ("square", "L2"):
        return SquareL2Search
    return SEARCHES.get(kind)


@dataclass(frozen=True)
class Found:
    """What a search found.

    adv: (N, C, H, W), the images, fooled ones replaced. unclear: rows whose logits were not finite
    in the search's precision. refused: candidates that did not fool the reference model.
    """

    adv: Tensor
    unclear: list[int]
    refused: int
    calls: int


def search(
    attack: Attack,
    model: AttackedModel,
    x: Tensor,
    y: Tensor,
    settings: Settings,
    precision: Precision,
    size: int,
    progress: Callable[[int], None] = lambda fooled: None,
) -> Found:
    """Attack correctly classified images x: (N, C, H, W) with labels y: (N,)."""
    passes = Passes(model, size, precision)
    targets = min(settings.num_classes - 1, MAX_TARGETS)
    kind = search_class(attack.kind, settings.norm)(attack, passes, settings, x, y, targets)
    slots = Slots(kind, passes, x, y)
    slots.run(progress)
    unclear = sorted(slots.unclear - slots.fooled)
    return Found(slots.adv, unclear, passes.refused, passes.calls)
