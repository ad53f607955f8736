"""Robust representation matching (RRM): clean features follow a robust teacher's; no attack.

Code: Ethos-lab/robust-representation-matching at 29d18bba30. From it: the weight 0.005 of the
cross-entropy, the cosine of the penultimate features. Assumed: a linear projection where the widths
differ.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Method, Net, Nets, Paper, hp
from methods.inner import at_least_float32
from methods.recipes import sgd


@dataclass(frozen=True)
class Rrm(Method):
    """alpha CE(S(x), y) + mean_i [1 - cos(f_S(x_i), f_T(x_i))], f: penultimate features."""

    formula = r"""
        L &= \alpha\,\mathrm{CE}(S(x), y) + \frac{1}{B}\sum_i [1 - \cos(f_S(x_i), f_T(x_i))]
    """
    paper = Paper(
        "Vaishnavi, Eykholt and Rahmati",
        "Transferring Adversarial Robustness Through Robust Representation Matching",
        "USENIX Security",
        2022,
        "https://www.usenix.org/conference/usenixsecurity22/presentation/vaishnavi",
    )
    recipe = sgd(
        48,
        0.0,
        weight_decay=5e-4,
        schedule="cosine",
        why={"epochs": "a quarter of the long suites here"},
    )
    epoch_dependent = False

    alpha: float = hp(0.005, "weight of the cross-entropy", low=0.001, high=1.0, log=True)

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        teacher_width = teachers["robust"].width
        same = teacher_width == student.width
        return {} if same else {"project": nn.Linear(student.width, teacher_width)}

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            target = nets.teacher.features(batch.x)
        features = nets.student.features(batch.x)
        projected = nets.parts["project"](features) if "project" in nets.parts else features
        cosine = F.cosine_similarity(at_least_float32(projected), at_least_float32(target))
        ce = F.cross_entropy(nets.student.head(features), batch.y)
        return {"ce": self.alpha * ce, "cosine": 1 - cosine.mean()}


METHOD = Rrm
