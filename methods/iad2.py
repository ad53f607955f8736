"""Introspective adversarial distillation II (IAD-II): AKD2, introspective.

Code: ZFancy/IAD at a8091a8c75, the source of formula and defaults, as the paper's text could not be
read. beta = 0 is AKD2, which has a second, naturally trained teacher. Before `begin` S(x) has the
weight 0 and passes the student all the same; in the script it does not.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl, quirk, true_class_probability
from methods.iad import Iad
from methods.inner import ce, pgd
from methods.recipes import ONE_FALL_200_EPOCHS, RAW_PIXELS


@dataclass(frozen=True)
class Iad2(Method):
    """(1 - alpha_robust - alpha_natural) CE(S(x~), y) + alpha_robust R
    + alpha_natural tau^2 KL(N(x~) || S(x~)), N: the natural teacher; inner CE.

    R = tau^2 mean_i [a_i KL(T(x~) || S(x~)) + (1 - a_i) KL(S(x) || S(x~))];
    a_i = p_T(y_i | x~_i)^beta; the teachers' terms are softened by tau.
    """

    formula = r"""
        L &= (1 - \alpha_{\mathrm{robust}} - \alpha_{\mathrm{natural}})\,
          \mathrm{CE}(S(\tilde{x}), y) + \alpha_{\mathrm{robust}}\, R \\
        &\quad + \alpha_{\mathrm{natural}}\,\tau^2\,
          \mathrm{KL}(N(\tilde{x})/\tau\,\|\,S(\tilde{x})/\tau) \\
        R &= \frac{\tau^2}{B}\sum_i
          [a_i\,\mathrm{KL}(T(\tilde{x}_i)/\tau\,\|\,S(\tilde{x}_i)/\tau) \\
        &\quad + (1-a_i)\,\mathrm{KL}(S(x_i)\,\|\,S(\tilde{x}_i))] \\
        a_i &= p_T(y_i \mid \tilde{x}_i)^\beta \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Iad.paper
    teacher_roles = ("robust", "natural")
    recipe = (*ONE_FALL_200_EPOCHS, *RAW_PIXELS)

    alpha_robust: float = hp(0.5, "share of robust teacher and self", low=0.0, high=0.7, most=1.0)
    alpha_natural: float = hp(0.25, "share of the natural teacher", low=0.0, high=0.3, most=1.0)
    beta: float = hp(0.1, "exponent of the trust in the teacher; 0: full trust", low=0.0, high=1.0)
    tau: float = hp(1.0, "teachers' temperature", low=1.0, high=30.0, log=True, above=0.0)
    begin: float = hp(0.0, "share of the epochs as AKD2", low=0.0, high=0.5, most=1.0, official=0.2)
    train_mode_attack: bool = quirk(False, True, "BatchNorm's statistics move in the attack")

    def __post_init__(self) -> None:
        super().__post_init__()
        total = self.alpha_robust + self.alpha_natural
        if total > 1:
            raise ValueError(f"alpha_robust + alpha_natural = {total:g}: at most 1")

    @property
    def epoch_dependent(self) -> bool:  # type: ignore[override]
        return self.begin != 0

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, train=self.train_mode_attack)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        robust, natural = nets.teacher_logits_at(adv), nets.teacher_logits_at(adv, "natural")
        exponent = self.beta if batch.reached(self.begin) else 0.0
        trust = true_class_probability(robust, batch.y) ** exponent
        logits_adv, logits_nat = nets.student(adv), nets.student(batch.x)
        u, v = self.alpha_robust * self.tau**2, self.alpha_natural * self.tau**2
        ce_share = 1 - self.alpha_robust - self.alpha_natural
        return {
            "ce_adv": ce_share * F.cross_entropy(logits_adv, batch.y),
            "kl_robust": u * (trust * kl(robust, logits_adv, self.tau)).mean(),
            "kl_self": u * ((1 - trust) * kl(logits_nat, logits_adv)).mean(),
            "kl_natural": v * kl(natural, logits_adv, self.tau).mean(),
        }


METHOD = Iad2
