"""Attacks on the margin max_{c != y} z_c - z_y. D5 is a defect listed in docs/lab/agreement.md."""

from __future__ import annotations

from typing import Any

import torch
import torchattacks
from torch import Tensor, nn


class MarginPGD(torchattacks.PGD):  # type: ignore[misc]
    """PGD on the margin, in l-inf the "CW" of the robustness literature.

    torchattacks' losses floor the runner-up at 0 and fail where all other logits are negative (D5).
    """

    def __init__(self, model: nn.Module, norm: str, **budget: Any) -> None:
        super().__init__(model, **budget)
        self.norm = norm

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the last iterates: (B, C, H, W)."""
        noise = self.eps * torch.empty_like(images).uniform_(-1, 1)
        if self.norm == "L2":
            noise = self._project(noise)
        adv: Tensor = (images + noise).clamp(0, 1).detach()
        for _ in range(self.steps):
            adv.requires_grad_()
            margins = logit_margin(self.get_logits(adv), labels)
            (gradient,) = torch.autograd.grad(margins.sum(), adv)
            moved = adv.detach() + self.alpha * self._ascent_direction(gradient)
            delta = self._project(moved - images)
            adv = (images + delta).clamp(0, 1).detach()
        return adv

    def _ascent_direction(self, gradient: Tensor) -> Tensor:
        if self.norm == "Linf":
            return gradient.sign()
        return gradient / (l2_norm(gradient) + 1e-10)

    def _project(self, delta: Tensor) -> Tensor:
        if self.norm == "Linf":
            return delta.clamp(-self.eps, self.eps)
        projected: Tensor = delta * (self.eps / (l2_norm(delta) + 1e-10)).clamp(max=1)
        return projected


class CWL2(torchattacks.attack.Attack):  # type: ignore[misc]
    """The L2 attack of Carlini and Wagner (S&P 2017).

    Adam on tanh-space images, a search for the weight c per image. torchattacks' own has one c, and
    fails on CUDA and where all other logits are negative (D5).
    """

    def __init__(self, model: nn.Module, steps: int, rounds: int) -> None:
        super().__init__("CWL2", model)
        self.steps, self.rounds = steps, rounds

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the nearest adversarial example of each image, the image if there is none."""
        distances = torch.full((len(images),), torch.inf, device=images.device)
        adv = images.clone()
        c, low = torch.full_like(distances, 1e-3), torch.zeros_like(distances)
        high = torch.full_like(distances, torch.inf)
        for _ in range(self.rounds):
            fooled = self._descend(images, labels, c, distances, adv)
            high = torch.where(fooled, torch.minimum(high, c), high)
            low = torch.where(fooled, low, torch.maximum(low, c))
            c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
        return adv

    def _descend(
        self, images: Tensor, labels: Tensor, c: Tensor, distances: Tensor, adv: Tensor
    ) -> Tensor:
        """Descend once; update `distances` and `adv` in place, return which images are fooled."""
        # 1 - 1e-6: the inverse of tanh is infinite for black and white pixels.
        w = torch.atanh((2 * images - 1) * (1 - 1e-6)).requires_grad_()
        adam = torch.optim.Adam([w], lr=0.01)
        fooled = torch.zeros_like(labels, dtype=torch.bool)
        for _ in range(self.steps):
            candidates = (w.tanh() + 1) / 2
            margins = logit_margin(self.get_logits(candidates), labels)
            squared = (candidates - images).flatten(1).square().sum(dim=1)
            loss = (squared + c * (-margins).clamp(min=0)).sum()
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            with torch.no_grad():
                fooled |= margins > 0
                nearer = (margins > 0) & (squared < distances)
                distances[nearer], adv[nearer] = squared[nearer], candidates[nearer]
        return fooled


def logit_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max_{c != y} z_c - z_y, positive if misclassified: (B, K), (B,) -> (B,)."""
    own = labels[:, None]
    runner_up = logits.scatter(1, own, -torch.inf).amax(dim=1)
    return runner_up - logits.gather(1, own).squeeze(1)


def l2_norm(delta: Tensor) -> Tensor:
    """Return the L2 norm of each perturbation: (B, C, H, W) -> (B, 1, 1, 1)."""
    norm: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
    return norm
