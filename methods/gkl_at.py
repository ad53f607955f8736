"""Adversarial training by the generalised Kullback-Leibler divergence (GKL-AT): no teacher.

TRADES with GKL in place of KL. Code: jiequancui/DKL, DKLv2 at c5e8ad2. From it: beta, what
methods/gkl.py names of its adversarial training, and that the clean logits pass a gradient in wMSE
and none in sCE. Left out: as there.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Nets, hp
from methods.gkl import Gkl
from methods.inner import eval_logits, kl_to, pgd
from methods.recipes import FREE_START, LAST_BATCH


@dataclass(frozen=True)
class GklAt(Gkl):
    """CE(S(x), y) + alpha sCE(S(x), S(x~)) + beta wMSE(S(x), S(x~)), x~ = argmax sCE(S(x), S(x~)).

    sCE, wMSE and q: as in GKL, with S(x) in place of T(x).
    """

    formula = r"""
        L &= \mathrm{CE}(S(x), y) + \alpha\,\mathrm{sCE}(S(x), S(\tilde{x}))
          + \beta\,\mathrm{wMSE}(S(x), S(\tilde{x})) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{sCE}(S(x), S(x'))
    """
    paper = Gkl.paper
    teacher_roles = ()
    recipe = (
        ("epochs", 200, "as in the script"),
        ("lr", 0.2, "as in the script, with half a cosine"),
        ("schedule", "cosine", "as in the script"),
        ("milestones", (0.0,), "the cosine begins at once"),
        *LAST_BATCH,
        *FREE_START,
    )
    unlike_script = (
        "The radius of the attack grows from 0 over the epochs, with 2 to 5 steps.",
        "AWP of 0.005 from the tenth epoch on: `--awp 0.005` begins with the first.",
    )

    beta: float = hp(20.0, "weight of the squared error; 0: none", low=0.0, high=40.0)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        self.class_prior(nets, batch)
        target = eval_logits(nets.student, batch.x)
        return pgd(nets.student, batch.x, kl_to(target), batch.budget, start="gauss")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        logits_adv, logits_nat = nets.student(adv), nets.student(batch.x)
        return self.terms(nets, batch, logits_nat, logits_nat, logits_adv)


METHOD = GklAt
