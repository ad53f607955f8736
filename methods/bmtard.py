"""Balanced multi-teacher adversarial robustness distillation (B-MTARD).

MTARD with temperatures of the teachers. They move so that both teachers' outputs become equally
uncertain; the student is not softened. Code: zhaoshiji123/MTARD-extension at 93506d69de; rate,
bounds, the sign rule and that both start at 1 are from it. There as here they soften the targets of
a step before they move; the weights move earlier there (`early_weights`).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from methods.adaptive import TeacherTemperatures, rate_decay
from methods.base import Batch, Net, Nets, Paper, hp
from methods.mtard import Mtard


@dataclass(frozen=True)
class Bmtard(Mtard):
    """w KL(T(x~) / t || S(x~)) + (1 - w) KL(N(x) / u || S(x)), w as in MTARD; inner CE.

    Each step moves t by -rate where H_T is above H_N, by rate below; u the other way. H_T, H_N:
    mean entropies of the teachers' softened outputs.
    """

    formula = r"""
        L &= w\,\mathrm{KL}(T(\tilde{x})/t\,\|\,S(\tilde{x}))
          + (1-w)\,\mathrm{KL}(N(x)/u\,\|\,S(x)) \\
        t &\leftarrow t - \mathrm{rate}\cdot\mathrm{sign}(H_T - H_N), \quad u \leftarrow u
          + \mathrm{rate}\cdot\mathrm{sign}(H_T - H_N) \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Zhao, Wang and Wei",
        "Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial "
        "Distillation",
        "TPAMI",
        2024,
        "https://arxiv.org/abs/2306.16170",
    )
    rate: float = hp(0.001, "step of the temperatures", low=1e-4, high=0.1, log=True)

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {**super().build(student, teachers, num_train), "uncertainty": TeacherTemperatures()}

    def targets(self, nets: Nets, batch: Batch, adv: Tensor) -> tuple[Tensor, Tensor]:
        robust, natural = super().targets(nets, batch, adv)
        uncertainty = nets.parts["uncertainty"]
        return uncertainty(robust, natural, batch.gather)  # type: ignore[no-any-return]

    def after_step(self, nets: Nets, batch: Batch) -> None:
        super().after_step(nets, batch)
        nets.parts["uncertainty"].move(self.rate * rate_decay(batch))  # type: ignore[operator]


METHOD = Bmtard
