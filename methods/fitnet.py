"""Feature regression (FitNet), a control: whether a robust teacher's features transfer robustness.

Code: HobbitLong/RepDistiller at b84f547c5d, of CRD's authors, whose weight of 100 is the default
and whose training `--official` sets. Assumed, with `--official` too: penultimate features and not
the second stage's through a 1x1 convolution, as networks here promise no more; both networks see x~
in the adversarial form.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Method, Net, Nets, Paper, hp
from methods.inner import ce, pgd
from methods.recipes import REPDISTILLER


@dataclass(frozen=True)
class Fitnet(Method):
    """CE(S(v), y) + beta MSE(R f_S(v), f_T(v)), R: linear; v: x, or x~ = argmax CE(S(x~), y).

    f: penultimate features. v is x~ with `inputs` adv.
    """

    formula = r"""
        L &= \mathrm{CE}(S(v), y) + \beta\,\mathrm{MSE}(R f_S(v), f_T(v)) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Romero et al.",
        "FitNets: Hints for Thin Deep Nets",
        "ICLR",
        2015,
        "https://arxiv.org/abs/1412.6550",
    )
    recipe = REPDISTILLER
    epoch_dependent = False

    beta: float = hp(100.0, "weight of the regression", low=1.0, high=500.0, log=True)
    inputs: str = hp("clean", "what both networks see", choices=("clean", "adv"))

    @property
    def adversarial(self) -> bool:
        return self.inputs == "adv"

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"regressor": nn.Linear(student.width, teachers["robust"].width)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        if not self.adversarial:
            return batch.x
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            target = nets.teacher.features(adv)
        features = nets.student.features(adv)
        mse = F.mse_loss(nets.parts["regressor"](features), target)
        return {"ce": F.cross_entropy(nets.student.head(features), batch.y), "mse": self.beta * mse}


METHOD = Fitnet
