"""The evaluation suite on torchattacks: named attacks with exact budgets, verified image by image.

`evaluate` works on any `nn.Module` that returns logits for images in [0, 1]. It shares no code with
the training attack. Importing this package loads neither torch nor torchattacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attacks.catalog import ATTACKS, Attack, NamedAttack, names

if TYPE_CHECKING:
    from attacks.evaluation import evaluate
    from attacks.result import Evaluation

__all__ = ["ATTACKS", "Attack", "Evaluation", "NamedAttack", "evaluate", "names"]


def __getattr__(name: str) -> Any:
    if name not in ("Evaluation", "evaluate"):
        raise AttributeError(f"module 'attacks' has no attribute {name!r}")
    from attacks import evaluation

    return getattr(evaluation, name)
