"""Training steps as the authors' scripts have them, which the harness is measured against.

fp32 (convolutions in TF32 on a CUDA device, PyTorch's default), channels first, the student itself attacked, nothing
compiled, ReLUs that overwrite nothing. Only what slows a step is theirs: attack, losses and BatchNorm's modes are those
of the harness's defaults.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Budget, Net

BUDGET = Budget(8 / 255, 2 / 255, 10)


def rslad(
    student: Net, teacher: Net, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """One step on the images x: (B, C, H, W) with labels y: (B,); returns the adversarial images and the loss."""
    with torch.no_grad():
        target = teacher(x).softmax(dim=1)
    noise = (0.001 * torch.randn(x.shape, device=x.device)).clamp(-BUDGET.eps, BUDGET.eps)
    adv = attacked(
        student,
        x,
        noise,
        lambda logits: F.kl_div(logits.log_softmax(dim=1), target, reduction="sum"),
    )
    far, near = (
        F.kl_div(student(v).log_softmax(dim=1), target, reduction="batchmean") for v in (adv, x)
    )
    return adv, updated(optimiser, 5 / 6 * far + 1 / 6 * near)


def ard(
    student: Net, teacher: Net, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """As `rslad`."""
    with torch.no_grad():
        target = (teacher(x) / 30).softmax(dim=1)
    adv = attacked(
        student, x, uniform(x), lambda logits: F.cross_entropy(logits, y, reduction="sum")
    )
    loss = 30**2 * F.kl_div((student(adv) / 30).log_softmax(dim=1), target, reduction="batchmean")
    return adv, updated(optimiser, loss)


def gacd(
    student: Net,
    teacher: Net,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    contrast: nn.Module,
) -> tuple[Tensor, Tensor]:
    """As `rslad`; contrast: both projections and the logarithm of Z, as methods.contrast has them."""
    with torch.no_grad():
        anchor = teacher.features(x)
        trust = teacher.head(anchor).softmax(dim=1)[torch.arange(len(y)), y]
    adv = attacked(
        student, x, uniform(x), lambda logits: F.cross_entropy(logits, y, reduction="sum")
    )
    features = student.features(adv)
    t, s = F.normalize(contrast.project_t(anchor)), F.normalize(contrast.project_s(features))
    scores = (t @ s.T / 0.07).exp()
    with torch.no_grad():
        pairs = len(y) * (len(y) - 1)
        now = (scores.sum() - scores.trace()) / pairs
        z = now if contrast.log_z.isnan() else 0.99 * contrast.log_z.exp() + 0.01 * now
        contrast.log_z.copy_(z.log())
    others = y[None] != y[:, None]
    count = others.sum(dim=1, keepdim=True).clamp(min=1)
    forth, back = (
        scores / z / count,
        scores.T / z / count,
    )  # the critic is h = r / (1 + r), r one of these
    positive = 2 * (1 + 1 / forth.diag()).log()
    negative = (((1 + forth) * (1 + back)).log() * others).sum(dim=1)
    guided = trust / trust.mean() * (positive + negative)
    return adv, updated(optimiser, F.cross_entropy(student.head(features), y) + 0.2 * guided.mean())


def as_released(net: Net) -> Net:
    """A copy as the authors have their networks: weights channels first, ReLUs that make a tensor of their own."""
    net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    features = net.features

    def plainly(x: Tensor) -> Tensor:
        ours, F.relu_ = F.relu_, F.relu
        try:
            return features(x)
        finally:
            F.relu_ = ours

    vars(net)["features"] = plainly
    return net


def optimiser_of(*learning: nn.Module) -> torch.optim.SGD:
    learnt = [value for module in learning for value in module.parameters()]
    return torch.optim.SGD(learnt, lr=0.1, momentum=0.9, weight_decay=5e-4)


def serve(pipe: Connection, method: str, student: Net, teacher: Net, parts: nn.ModuleDict) -> None:
    """In a process of its own, whose memory is managed as usual: makes a step for each (seed, x, y) that comes, until None.

    Answers with seconds, loss and adversarial images.
    """
    student, teacher = as_released(student), as_released(teacher)
    optimiser = optimiser_of(student, parts)
    for seed, x, y in iter(pipe.recv, None):
        torch.manual_seed(seed)
        start = time.perf_counter()
        adv, loss = globals()[method](student, teacher, optimiser, x, y, *parts.values())
        pipe.send((time.perf_counter() - start, float(loss), adv))


def uniform(x: Tensor) -> Tensor:
    return (2 * torch.rand(x.shape, device=x.device) - 1) * BUDGET.eps


def attacked(student: Net, x: Tensor, noise: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """PGD on the network in eval mode."""
    student.eval()
    adv = (x + noise).clamp(0, 1)
    for _ in range(BUDGET.steps):
        adv.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(student(adv)), adv)
        adv = adv.detach() + BUDGET.step * gradient.sign()
        adv = torch.min(torch.max(adv, x - BUDGET.eps), x + BUDGET.eps).clamp(0, 1)
    student.train()
    return adv.detach()


def updated(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.detach()


def loaded(root: Path, images: int, batch: int, workers: int) -> Iterator[list[Tensor]]:
    """An epoch of CIFAR-10 batches from torchvision's files, transforms and a DataLoader's processes."""
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    found = datasets.CIFAR10(str(root), transform=transforms.Compose(steps))
    chosen = Subset(found, range(images))
    yield from DataLoader(chosen, batch, shuffle=True, drop_last=True, num_workers=workers)
