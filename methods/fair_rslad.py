"""Fair RSLAD: class weights from the number of steps that an attack needs.

Code: NISP-official/Fair-ARD at 910c8cd17b. From it: kappa_c, the mean number of attack steps at
which images of class c are still classified rightly; the square; the clamp to 5/6 and 5/2. kappa is
counted in the training attack itself. The script divides each class's steps by N / C, images over
classes, and not by its own number of images: equal for balanced classes alone (`class_sums`). It
divides by a kappa of 0, so the weight of a class that is always fooled, or never occurs, is NaN;
here kappa is at least 0.1, with `--official` too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.adaptive import ClassMeans
from methods.base import Batch, Method, Net, Nets, Paper, hp, kl, kl_reduction, kl_scale, quirk
from methods.inner import Objective, kl_to, pgd
from methods.recipes import THREE_FALLS_300_EPOCHS


@dataclass(frozen=True)
class FairRslad(Method):
    """mean_i w_c(i) [(1 - alpha) KL(T(x) || S(x)) + alpha KL(T(x) || S(x~))].

    x~ = argmax KL(T(x) || S(x~)).
    w_c ~ kappa_c^-power of the last epoch, scaled to mean 1, then clamped to [5/6, 5/2]. kappa_c:
    mean number of attack steps at which images of class c are still right.
    """

    formula = r"""
        L &= \frac{1}{B}\sum_i w_{y_i}
          [(1-\alpha)\,\mathrm{KL}(T(x_i)\,\|\,S(x_i))
            + \alpha\,\mathrm{KL}(T(x_i)\,\|\,S(\tilde{x}_i))] \\
        w_c &\propto \kappa_c^{-\mathrm{power}} \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{KL}(T(x)\,\|\,S(x'))
    """
    paper = Paper(
        "Yue et al.",
        "Revisiting Adversarial Robustness Distillation from the Perspective of Robust Fairness",
        "NeurIPS",
        2023,
        "https://openreview.net/forum?id=ywrPcBEXdC",
    )
    recipe = (*THREE_FALLS_300_EPOCHS, ("nesterov", True, "Nesterov momentum"))

    alpha: float = hp(5 / 6, "share of the adversarial term", low=0.5, high=1.0, most=1.0)
    power: float = hp(2.0, "exponent of the class weights; 0: RSLAD", low=0.0, high=4.0, most=16.0)
    reduction: str = kl_reduction("mean")
    class_sums: bool = quirk(
        False,
        True,
        "kappa is a sum over N / C, so that rare classes look hard and weigh more",
        later=True,
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"fair": ClassWeights(student.num_classes)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        class_weights: ClassWeights = nets.parts["fair"]  # type: ignore[assignment]
        class_weights.begin_step(batch, self.power, self.class_sums)
        # kappa: attack steps at which each image is right, (B,).
        objective, kappa = count_correct(kl_to(nets.teacher_logits(batch)), batch.y)
        adv = pgd(nets.student, batch.x, objective, batch.budget, start="gauss")
        class_weights.add(batch.gather(kappa)[None], batch.gather(batch.y))
        return adv

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        target = nets.teacher_logits(batch)
        w = nets.parts["fair"].get_buffer("weights")[batch.y]
        weight = kl_scale(self.reduction, target.shape[1])
        kl_adv = (w * kl(target, nets.student(adv))).mean()
        kl_nat = (w * kl(target, nets.student(batch.x))).mean()
        return {"kl_adv": weight * self.alpha * kl_adv, "kl": weight * (1 - self.alpha) * kl_nat}


class ClassWeights(ClassMeans):
    """A weight for each class: the fewer attack steps its images survive, the larger."""

    weights: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, 1)
        self.register_buffer("weights", torch.ones(num_classes))

    def update(self, means: Tensor, strength: float) -> None:
        """Update the weights from kappa, (1, C); strength: the exponent."""
        # 0.1: a class that is always fooled, or never occurs, would get an infinite weight.
        w = means[0].clamp(min=0.1) ** -strength
        self.weights.copy_((w / w.mean()).clamp(5 / 6, 5 / 2))


def count_correct(objective: Objective, y: Tensor) -> tuple[Objective, Tensor]:
    """Return the objective and the number of its calls at which each image is right, (B,)."""
    counts = torch.zeros_like(y)

    def counting(net: nn.Module, adv: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        # The logits are those of the objective's own pass: a second one would double the cost.
        hook = net.register_forward_hook(lambda _, __, logits: outputs.append(logits))
        try:
            value = objective(net, adv)
        finally:
            hook.remove()
        counts.add_(outputs[-1].argmax(dim=1) == y)
        return value

    return counting, counts


METHOD = FairRslad
