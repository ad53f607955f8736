"""Run one component of an attack as a search for devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from attacks.attacked_model import AttackedModel
from attacks.build import Settings
from attacks.catalog import Attack
from attacks.search.apgd import APGDSearch
from attacks.search.compiling import MIN_OPERATIONS, count_operations
from attacks.search.fab import FABSearch
from attacks.search.passes import Passes
from attacks.search.pgd import PGDSearch
from attacks.search.slots import Search, Slots
from attacks.search.square import SquareSearch
from attacks.search.square_l2 import SquareL2Search

Starter: TypeAlias = Callable[[Attack, Passes, Settings, Tensor], Search]
SEARCHES: dict[str, Starter] = {
    "apgd-ce": APGDSearch, "apgd-dlr": APGDSearch, "apgd-t": APGDSearch,
    "fab-t": FABSearch, "square": SquareSearch, "pgd": PGDSearch, "cw": PGDSearch,
}  # fmt: skip


def search_class(kind: str, norm: str) -> Starter | None:
    """Return the search of a kind of attack, None where there is only the exact one."""
    if (kind, norm) == ("square", "L2"):
        return SquareL2Search
    return SEARCHES.get(kind)


def can_search(attack: Attack, model: AttackedModel, settings: Settings) -> bool:
    """Return whether a device's search takes a component; the exact one takes all."""
    # One pass of a randomised model says nothing, and without gradients only Square can begin.
    has_class = search_class(attack.kind, settings.norm) is not None
    return has_class and attack.eot == 1 and (model.differentiable or attack.kind == "square")


def pays_to_compile(search: Search, model: AttackedModel, x: Tensor) -> bool:
    """Return whether an attack on images x, (N, C, H, W), is long enough to compile the network."""
    if not x.is_cuda:
        return False
    passes = len(x) * search.rounds_per_image * search.steps * search.passes_per_step
    return passes * count_operations(model.network, x) >= MIN_OPERATIONS


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    adv: (N, C, H, W), the images, fooled ones replaced. fooled: (N,) bool, as the search saw it.
    unclear: rows whose logits were not finite in the search's precision. refused: candidates that
    did not fool the reference model. size: images in a pass.
    """

    adv: Tensor
    fooled: Tensor
    unclear: list[int]
    refused: int
    size: int


def search(
    attack: Attack,
    model: AttackedModel,
    x: Tensor,
    y: Tensor,
    settings: Settings,
    size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> SearchResult:
    """Attack correctly classified images x: (N, C, H, W) with labels y: (N,).

    size: images in a pass, at most; where memory does not suffice all begins again with half of
    them. progress is called with the number of images that are done, as far as can be said.
    Raises RuntimeError if the smallest passes do not fit into the memory.
    """
    start_search = search_class(attack.kind, settings.norm)
    assert start_search
    while True:
        passes = Passes(model, size, settings.precision)
        try:
            attack_search = start_search(attack, passes, settings, x)
            passes.compiles = pays_to_compile(attack_search, model, x)
            slots = Slots(attack_search, passes, x, y)
            slots.run(progress)
            break
        except torch.OutOfMemoryError as error:
            if size == 1:
                message = f"out of memory with {size} images in a pass"
                raise RuntimeError(message) from error
            size //= 2
        # Outside of the handler, which holds on to the tensors of the attempt.
        torch.cuda.empty_cache()
    fooled = torch.zeros(len(x), dtype=torch.bool)
    fooled[sorted(slots.fooled)] = True
    unclear = sorted(slots.unclear - slots.fooled)
    return SearchResult(slots.adv, fooled, unclear, passes.refused, size)
