"""Standard training on clean images: no attack, no teacher. The floor of every robustness table."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets


@dataclass(frozen=True)
class Natural(Method):
    """CE(S(x), y)."""

    formula = r"L &= \mathrm{CE}(S(x), y)"
    teacher_roles = ()
    epoch_dependent = False

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(nets.student(batch.x), batch.y)}


METHOD = Natural
