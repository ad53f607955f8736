"""Components that torchattacks lacks or gets wrong, and APGD, whose broken images leave; see fab.py and square.py too.

The numbers after D are those of the defects in docs/evaluation.md.
"""

from __future__ import annotations

from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

SLACK = 1e-6  # of eps: what rounding adds to an iterate that was clipped to the ball


class APGD(torchattacks.APGD):  # type: ignore[misc]
    """Auto-PGD whose images leave with their first misclassified iterate; with eot_iter > 1 none leaves early."""

    def attack_single_run(self, x_in: Tensor, y_in: Tensor) -> tuple[None, Tensor, None, Tensor]:
        if self.eot_iter > 1:
            run: tuple[None, Tensor, None, Tensor] = super().attack_single_run(x_in, y_in)
            return run
        standing, adv = torch.ones_like(y_in, dtype=torch.bool), x_in
        with self.model.watching(x_in, y_in, self.eps + SLACK, self.norm) as watch:
            _, standing, _, adv = super().attack_single_run(x_in, y_in)
        return None, standing & watch.standing, None, watch.merge(adv)


class APGDT(APGD):
    """Auto-PGD on the targeted DLR loss, from the second to the tenth class of the clean prediction.

    torchattacks' own takes the first image's step size for the whole batch in L2 (D9).
    """

    n_target_classes: int
    target: Tensor

    def dlr_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) of logits x: (B, K)."""
        ordered, rows = x.sort(dim=1)[0], torch.arange(len(x))
        spread = ordered[:, -1] - 0.5 * ordered[:, -3] - 0.5 * ordered[:, -4] + 1e-12
        loss: Tensor = -(x[rows, y] - x[rows, self.target]) / spread
        return loss

    def perturb(
        self, x_in: Tensor, y_in: Tensor, best_loss: bool = False, cheap: bool = True
    ) -> tuple[Tensor, Tensor]:
        torch.manual_seed(self.seed)
        with torch.no_grad():
            standing, adv = self.get_logits(x_in).argmax(dim=1) == y_in, x_in.clone()
        for rank in range(2, self.n_target_classes + 2):
            rows = standing.nonzero().squeeze(1)
            if not len(rows):
                break
            with torch.no_grad():
                self.target = self.get_logits(x_in[rows]).sort(dim=1)[1][:, -rank]
            _, standing[rows], _, found = self.attack_single_run(x_in[rows], y_in[rows])
            adv[rows] = torch.where(standing[rows].view(-1, 1, 1, 1), adv[rows], found)
        return standing, adv


class MarginPGD(torchattacks.PGD):  # type: ignore[misc]
    """PGD on the margin max_{c != y} z_c - z_y, in l-inf the "CW" of the robustness literature.

    torchattacks' own margin losses floor the runner-up at 0 and fail where all other logits are negative (D5).
    """

    def __init__(self, model: nn.Module, norm: str, **budget: Any) -> None:
        super().__init__(model, **budget)
        self.norm = norm

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        adv = images + self._start(torch.empty_like(images).uniform_(-1, 1))
        adv = adv.clamp(0, 1).detach()
        for _ in range(self.steps):
            adv.requires_grad_()
            (gradient,) = torch.autograd.grad(margin(self.get_logits(adv), labels).sum(), adv)
            delta = self._project(adv.detach() + self.alpha * self._direction(gradient) - images)
            adv = (images + delta).clamp(0, 1).detach()
        return adv

    def _start(self, noise: Tensor) -> Tensor:
        return self.eps * noise if self.norm == "Linf" else self._project(self.eps * noise)

    def _direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign() if self.norm == "Linf" else gradient / (length(gradient) + 1e-10)

    def _project(self, delta: Tensor) -> Tensor:
        if self.norm == "Linf":
            return delta.clamp(-self.eps, self.eps)
        shrunk: Tensor = delta * (self.eps / (length(delta) + 1e-10)).clamp(max=1)
        return shrunk


class CWL2(torchattacks.attack.Attack):  # type: ignore[misc]
    """The L2 attack of Carlini and Wagner (S&P 2017): Adam on tanh-space images, a search for the weight c per image.

    torchattacks' own has one fixed c, and fails on CUDA and where all other logits are negative (D5).
    """

    def __init__(
        self, model: nn.Module, steps: int, rounds: int, lr: float = 0.01, c: float = 1e-3
    ) -> None:
        super().__init__("CWL2", model)
        self.steps, self.rounds, self.lr, self.c = steps, rounds, lr, c

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The nearest adversarial image found for each image, the image itself where none was."""
        nearest, adv = torch.full((len(images),), torch.inf, device=images.device), images.clone()
        c, low = torch.full_like(nearest, self.c), torch.zeros_like(nearest)
        high = torch.full_like(nearest, torch.inf)
        for _ in range(self.rounds):
            hit = self._descend(images, labels, c, nearest, adv)
            high = torch.where(hit, torch.minimum(high, c), high)
            low = torch.where(hit, low, torch.maximum(low, c))
            c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
        return adv

    def _descend(
        self, images: Tensor, labels: Tensor, c: Tensor, nearest: Tensor, adv: Tensor
    ) -> Tensor:
        """One descent; updates `nearest` and `adv` in place and tells which images it broke."""
        w = torch.atanh((2 * images - 1) * (1 - 1e-6)).requires_grad_()
        adam = torch.optim.Adam([w], lr=self.lr)
        hit = torch.zeros_like(labels, dtype=torch.bool)
        for _ in range(self.steps):
            tried = (w.tanh() + 1) / 2
            gain = margin(self.get_logits(tried), labels)
            squared = (tried - images).flatten(1).square().sum(dim=1)
            adam.zero_grad()
            (squared + c * (-gain).clamp(min=0)).sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
            with torch.no_grad():
                hit |= gain > 0
                closer = (gain > 0) & (squared < nearest)
                nearest[closer], adv[closer] = squared[closer], tried[closer]
        return hit


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{c != y} z_c - z_y, positive where misclassified: (B, K), (B,) -> (B,)."""
    true = nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(dim=1) - logits.gather(
        1, labels[:, None]
    ).squeeze(1)


def length(delta: Tensor) -> Tensor:
    """The L2 norm of each image: (B, C, H, W) -> (B, 1, 1, 1)."""
    norm: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return norm
