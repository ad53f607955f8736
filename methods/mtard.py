"""Multi-teacher adversarial robustness distillation (MTARD).

A robust teacher for x~, a natural one for x; the two weights move so that the term which has fallen
less gets more. Code: zhaoshiji123/MTARD at 6480a1b40d; rates and attack (cross-entropy, Gaussian
start) are from it. There the weights move before the step in which they count, here after it
(`early_weights`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.adaptive import rate_decay
from methods.base import Batch, Method, Net, Nets, Paper, hp, kl, kl_reduction, kl_scale, quirk
from methods.inner import ce, pgd
from methods.recipes import THREE_FALLS_300_EPOCHS


@dataclass(frozen=True)
class Mtard(Method):
    """w KL(T(x~) || S(x~)) + (1 - w) KL(N(x) || S(x)), N: the natural teacher; inner CE.

    Each step moves w by eta towards r_T / (r_T + r_N), r = (term / its first value)^gamma. eta
    falls to a tenth after each milestone of RSLAD's script.
    """

    formula = r"""
        L &= w L_T + (1-w) L_N, \quad L_T = \mathrm{KL}(T(\tilde{x})\,\|\,S(\tilde{x})),
          \quad L_N = \mathrm{KL}(N(x)\,\|\,S(x)) \\
        w &\leftarrow w + \eta \left(\frac{r_T}{r_T + r_N} - w\right),
          \quad r = (L / L^{(0)})^\gamma \\
        \tilde{x} &= \mathrm{arg}\max_{x'} \mathrm{CE}(S(x'), y)
    """
    paper = Paper(
        "Zhao et al.",
        "Enhanced Accuracy and Robustness via Multi-Teacher Adversarial Distillation",
        "ECCV",
        2022,
        "https://link.springer.com/chapter/10.1007/978-3-031-19772-7_34",
    )
    teacher_roles = ("robust", "natural")
    recipe = THREE_FALLS_300_EPOCHS

    eta: float = hp(0.025, "rate of the weights", low=0.001, high=0.1, log=True, most=1.0)
    gamma: float = hp(1.0, "exponent of the relative losses", low=0.1, high=4.0, log=True)
    reduction: str = kl_reduction("tenth")
    early_weights: bool = quirk(
        False,
        True,
        "the weights move before the step in which they count, one step earlier",
        later=True,
    )

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"balance": Balance()}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, start="gauss")

    def targets(self, nets: Nets, batch: Batch, adv: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the robust teacher at adv and of the natural one at x."""
        return nets.teacher_logits_at(adv), nets.teacher_logits(batch, "natural")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        robust, natural = self.targets(nets, batch, adv)
        weight = kl_scale(self.reduction, robust.shape[1])
        kl_adv = weight * kl(robust, nets.student(adv)).mean()
        kl_nat = weight * kl(natural, nets.student(batch.x)).mean()
        balance: Balance = nets.parts["balance"]  # type: ignore[assignment]
        w = balance.observe(batch.mean(torch.stack([kl_adv, kl_nat]).detach()))
        if self.early_weights:
            w = self.move_weights(nets, batch).clone()
        return {"kl_robust": w[0] * kl_adv, "kl_natural": w[1] * kl_nat}

    def after_step(self, nets: Nets, batch: Batch) -> None:
        if not self.early_weights:
            self.move_weights(nets, batch)

    def move_weights(self, nets: Nets, batch: Batch) -> Tensor:
        """Move the weights one step by the last terms and return them."""
        balance: Balance = nets.parts["balance"]  # type: ignore[assignment]
        balance.move(self.eta * rate_decay(batch), self.gamma)
        return balance.weights


class Balance(nn.Module):
    """The weights of two terms, which sum to 1, with the terms' first and last values."""

    weights: Tensor
    first: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([0.5, 0.5]))
        self.register_buffer("first", torch.zeros(2))
        self.register_buffer("last", torch.zeros(2))

    def observe(self, terms: Tensor) -> Tensor:
        """Keep the terms, (2,), and return the weights they have in this step."""
        self.last.copy_(terms)
        # first stays 0 until the first step.
        self.first.copy_(torch.where(self.first > 0, self.first, self.last))
        # A copy: the loss's graph must not see them move.
        return self.weights.clone()

    def move(self, rate: float, gamma: float) -> None:
        """Move the weights one step towards the term that has fallen less."""
        r = (self.last / self.first.clamp(min=1e-12)) ** gamma
        self.weights += rate * (r / r.sum().clamp(min=1e-12) - self.weights)


METHOD = Mtard
