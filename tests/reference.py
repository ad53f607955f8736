"""A training step of RSLAD as the authors' scripts have it, which the harness is measured against.

fp32 (convolutions in TF32 on a CUDA device, PyTorch's default), channels first, the student itself attacked, nothing
compiled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Budget, Net

BUDGET = Budget(8 / 255, 2 / 255, 10)


def step(student: Net, teacher: Net, optimiser: torch.optim.Optimizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """One step on the images x: (B, C, H, W); returns the adversarial images and the loss."""
    with torch.no_grad():
        target = teacher(x).softmax(dim=1)
    student.eval()
    adv = (x + (0.001 * torch.randn_like(x)).clamp(-BUDGET.eps, BUDGET.eps)).clamp(0, 1)
    for _ in range(BUDGET.steps):
        adv.requires_grad_()
        loss = F.kl_div(student(adv).log_softmax(dim=1), target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adv)
        adv = adv.detach() + BUDGET.step * gradient.sign()
        adv = torch.min(torch.max(adv, x - BUDGET.eps), x + BUDGET.eps).clamp(0, 1)
    student.train()
    far, near = (F.kl_div(student(v).log_softmax(dim=1), target, reduction="batchmean") for v in (adv, x))
    optimiser.zero_grad()
    loss = 5 / 6 * far + 1 / 6 * near
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return adv.detach(), loss.detach()
