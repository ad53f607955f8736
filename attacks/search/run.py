"""Run one component of an attack as a search for devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attacked_model import AttackedModel
from attacks.build import MAX_TARGETS, Settings
from attacks.catalog import Attack
from attacks.search.apgd import APGDSearch
from attacks.search.fab import FABSearch
from attacks.search.passes import Passes
from attacks.search.pgd import PGDSearch
from attacks.search.slots import Search, Slots
from attacks.search.square import SquareSearch
from attacks.search.square_l2 import SquareL2Search

# Images in a pass, before any out-of-memory.
CUDA_SIZE, CPU_SIZE = 1024, 256

SEARCHES: dict[str, Callable[..., Search]] = {
    "apgd-ce": APGDSearch, "apgd-dlr": APGDSearch, "apgd-t": APGDSearch,
    "fab-t": FABSearch, "square": SquareSearch, "pgd": PGDSearch, "cw": PGDSearch,
}  # fmt: skip


def search_class(kind: str, norm: str) -> Callable[..., Search] | None:
    """Return the search of a kind of attack, None where there is only the exact one."""
    if (kind, norm) == ("square", "L2"):
        return SquareL2Search
    return SEARCHES.get(kind)


def can_search(attack: Attack, model: AttackedModel, settings: Settings) -> bool:
    """Return whether a device's search takes a component; the exact one takes all."""
    # One pass of a randomised model says nothing, and without gradients only Square can begin.
    has_class = search_class(attack.kind, settings.norm) is not None
    return has_class and attack.eot == 1 and (model.differentiable or attack.kind == "square")


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    adv: (N, C, H, W), the images, fooled ones replaced. fooled: (N,) bool, as the search saw it.
    unclear: rows whose logits were not finite in the search's precision. refused: candidates that
    did not fool the reference model. calls: of the network.
    """

    adv: Tensor
    fooled: Tensor
    unclear: list[int]
    refused: int
    calls: int


def search(
    attack: Attack,
    model: AttackedModel,
    x: Tensor,
    y: Tensor,
    settings: Settings,
    progress: Callable[[int], None] = lambda done: None,
) -> SearchResult:
    """Attack correctly classified images x: (N, C, H, W) with labels y: (N,).

    progress is called with the number of images that are done, as far as can be said.
    Raises RuntimeError if not even one image fits into the device's memory.
    """
    size = CUDA_SIZE if x.is_cuda else CPU_SIZE
    passes = Passes(model, size, settings.precision)
    targets = min(settings.num_classes - 1, MAX_TARGETS)
    kind = search_class(attack.kind, settings.norm)
    assert kind
    slots = Slots(kind(attack, passes, settings, x, y, targets), passes, x, y)
    slots.run(progress)
    fooled = torch.zeros(len(x), dtype=torch.bool)
    fooled[sorted(slots.fooled)] = True
    unclear = sorted(slots.unclear - slots.fooled)
    return SearchResult(slots.adv, fooled, unclear, passes.refused, passes.calls)
