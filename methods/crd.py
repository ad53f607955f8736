"""Contrastive representation distillation (CRD), a control: clean features, no attack.

Code: HobbitLong/RepDistiller at b84f547c5d. From it: the weight 0.8, the temperature 0.07, 128
dimensions. Not from it: positives and negatives are live, the batch's or those of the queue `bank`
(methods/contrast.py). There they are out of a memory of all training images (`memory`): each pair
has one embedding of an epoch ago, which has no gradient, so the student is trained by the
student-anchored direction alone. Left out: the 1e-7 in its denominators.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Method, Net, Nets, Paper, hp, quirk
from methods.contrast import CRITIC, Contrast, MemoryContrast
from methods.recipes import REPDISTILLER


@dataclass(frozen=True)
class Contrastive(Method):
    """CE(S(v), y) + lambda_con mean_i l_i, l_i: contrast of anchor i in f_T(x) and f_S(v).

    v: what `attack` returns. Not a method by itself: what CRD and GACD share.
    """

    epoch_dependent = False

    dim: int = hp(128, "size of embeddings", low=32, high=256, log=True, above=0, most=16384)
    estimator: str = hp("nce", "form of the critic", choices=("nce", "infonce"))
    bank: int = hp(0, "queue of negatives; 0: those of the batch", low=0, high=16384, most=2**20)
    tau: float = hp(0.07, "temperature of the critic", low=0.05, high=0.5, log=True, above=0.0)
    symmetric: bool = hp(True, "add the student-anchored direction")
    lambda_con: float = hp(0.8, "weight of the contrast", low=0.05, high=2.0, log=True)

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        widths = student.width, teachers["robust"].width
        return {"contrast": Contrast(*widths, self.dim, self.tau, self.estimator, self.bank)}

    def contrast(self, nets: Nets, batch: Batch, anchor: Tensor, features: Tensor) -> Tensor:
        """Return l_i from the teacher's and the student's features: (B,)."""
        positive, negative = nets.parts["contrast"](
            anchor, features, batch.y, self.symmetric, batch.gather
        )
        return positive + negative  # type: ignore[no-any-return]

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            anchor = nets.teacher.features(batch.x)
        features = nets.student.features(adv)
        contrast = self.contrast(nets, batch, anchor, features)
        ce = F.cross_entropy(nets.student.head(features), batch.y)
        return {"contrast": self.lambda_con * contrast.mean(), "ce": ce}


@dataclass(frozen=True)
class Crd(Contrastive):
    """CE(S(x), y) + lambda_con mean_i l_i, l_i: contrast of anchor i in f_T(x) and f_S(x).

    h: the critic; t_i, s_i: projected unit features of T and S; n_i: number of negatives j, images
    of other classes; Z: running mean of the exponential. `symmetric` adds the direction from s_i to
    t_j; `estimator` infonce is another l_i.
    """

    formula = r"L &= \mathrm{CE}(S(x), y) + \frac{\lambda_{\mathrm{con}}}{B}\sum_i l_i" + CRITIC
    paper = Paper(
        "Tian, Krishnan and Isola",
        "Contrastive Representation Distillation",
        "ICLR",
        2020,
        "https://arxiv.org/abs/1910.10699",
    )
    recipe = REPDISTILLER

    memory: int = quirk(
        0,
        16384,
        "so many negatives are drawn for each image out of a memory, as its positive is",
        later=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory and self.bank:
            raise ValueError(f"memory = {self.memory} and bank = {self.bank}: one of them")
        if self.memory and not self.symmetric:
            raise ValueError("memory without symmetric: the contrast would not train the student")

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        if not self.memory:
            return super().build(student, teachers, num_train)
        critic = student.width, teachers["robust"].width, self.dim, self.tau, self.estimator
        return {"contrast": MemoryContrast(*critic, num_train, self.memory)}

    def contrast(self, nets: Nets, batch: Batch, anchor: Tensor, features: Tensor) -> Tensor:
        if not self.memory:
            return super().contrast(nets, batch, anchor, features)
        part: MemoryContrast = nets.parts["contrast"]  # type: ignore[assignment]
        positive, negative = part.against_memory(
            anchor, features, batch.y, batch.index, batch.gather
        )
        return positive + negative


METHOD = Crd
