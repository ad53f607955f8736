"""Knowledge distillation on clean images.

From the paper: the factor tau^2 keeps the size of the soft term's gradient independent of the
temperature. Defaults alpha = 0.9, tau = 4 are those of the code of CRD's authors,
HobbitLong/RepDistiller at b84f547c5d. Its training is what `--official` sets; the paper's own is
not known.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, Paper, hp, kl
from methods.recipes import REPDISTILLER


@dataclass(frozen=True)
class Kd(Method):
    """(1 - alpha) CE(S(x), y) + alpha tau^2 KL(T(x) || S(x)), both softened by tau."""

    formula = r"""
        L &= (1-\alpha)\,\mathrm{CE}(S(x), y)
          + \alpha\tau^2\,\mathrm{KL}(T(x)/\tau\,\|\,S(x)/\tau)
    """
    paper = Paper(
        "Hinton, Vinyals and Dean",
        "Distilling the Knowledge in a Neural Network",
        "arXiv",
        2015,
        "https://arxiv.org/abs/1503.02531",
    )
    recipe = REPDISTILLER
    epoch_dependent = False

    alpha: float = hp(0.9, "share of the soft term", low=0.0, high=1.0, most=1.0)
    tau: float = hp(4.0, "temperature", low=1.0, high=20.0, log=True, above=0.0)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        logits = nets.student(batch.x)
        kl_mean = kl(nets.teacher_logits(batch), logits, self.tau).mean()
        ce = F.cross_entropy(logits, batch.y)
        return {"ce": (1 - self.alpha) * ce, "kl": self.alpha * self.tau**2 * kl_mean}


METHOD = Kd
