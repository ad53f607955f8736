"""CRD on adversarial examples, a control.

It is GACD without sample weights, with the teacher on clean images and both directions: `gacd
--weight none --teacher-input clean --symmetric`. The critic is CRD's. Assumed, as in gacd: the
student embeds x~; the attack is the cross-entropy's; the contrast weighs 0.2 and not CRD's 0.8,
which crowds a small student's classifier out (docs/lab/log.md).
"""

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Nets, hp
from methods.contrast import CRITIC
from methods.crd import Contrastive
from methods.inner import ce, pgd


@dataclass(frozen=True)
class CrdAdv(Contrastive):
    """CE(S(x~), y) + lambda_con mean_i l_i, l_i: between f_T(x) and f_S(x~); inner CE.

    h, t_i, s_i, n_i, Z, symmetric and estimator: as in CRD.
    """

    formula = (
        r"""
        L &= \mathrm{CE}(S(\tilde{x}), y) + \frac{\lambda_{\mathrm{con}}}{B}\sum_i l_i \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
        + CRITIC
    )
    lambda_con: float = hp(0.2, "weight of the contrast", low=0.05, high=2.0, log=True)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget)


METHOD = CrdAdv
