"""Training steps as the authors' scripts have them, which the harness is measured against.

fp32 (convolutions in TF32 on a CUDA device, PyTorch's default), channels first, the student itself
attacked, nothing compiled, ReLUs that overwrite nothing. Only what slows a step is theirs: attack,
losses and BatchNorm's modes are those of the harness's defaults.
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
    """Train on images x: (B, C, H, W), labels y: (B,); return adversarial examples and the loss."""
    with torch.no_grad():
        target = teacher(x).softmax(dim=1)
    noise = (0.001 * torch.randn(x.shape, device=x.device)).clamp(-BUDGET.eps, BUDGET.eps)
    adv = attack_student(
        student,
        x,
        noise,
        lambda logits: F.kl_div(logits.log_softmax(dim=1), target, reduction="sum"),
    )
    log_adv = student(adv).log_softmax(dim=1)
    kl_adv = F.kl_div(log_adv, target, reduction="batchmean")
    log_nat = student(x).log_softmax(dim=1)
    kl_nat = F.kl_div(log_nat, target, reduction="batchmean")
    return adv, update(optimiser, 5 / 6 * kl_adv + 1 / 6 * kl_nat)


def ard(
    student: Net, teacher: Net, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Train as `rslad` does."""
    with torch.no_grad():
        target = (teacher(x) / 30).softmax(dim=1)
    adv = attack_student(
        student, x, draw_uniform(x), lambda logits: F.cross_entropy(logits, y, reduction="sum")
    )
    loss = 30**2 * F.kl_div((student(adv) / 30).log_softmax(dim=1), target, reduction="batchmean")
    return adv, update(optimiser, loss)


def gacd(
    student: Net,
    teacher: Net,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    contrast: nn.Module,
) -> tuple[Tensor, Tensor]:
    """Train as `rslad` does; contrast: both projections and log Z, as in methods.contrast."""
    adv = attack_student(
        student, x, draw_uniform(x), lambda logits: F.cross_entropy(logits, y, reduction="sum")
    )
    with torch.no_grad():
        anchor = teacher.features(adv)
        probabilities = teacher.head(anchor).softmax(dim=1)
        true_class_probability = probabilities[torch.arange(len(y)), y]
    features = student.features(adv)
    t, s = F.normalize(contrast.project_t(anchor)), F.normalize(contrast.project_s(features))
    scores = (t @ s.T / 0.07).exp()
    with torch.no_grad():
        pairs = len(y) * (len(y) - 1)
        z = (scores.sum() - scores.trace()) / pairs
        if not contrast.log_z.isnan():
            z = 0.99 * contrast.log_z.exp() + 0.01 * z
        contrast.log_z.copy_(z.log())
    negatives = y[None] != y[:, None]
    count = negatives.sum(dim=1, keepdim=True).clamp(min=1)
    # The critic is h = r / (1 + r) with this ratio r.
    ratio = scores / z / count
    positive = (1 + 1 / ratio.diag()).log()
    negative = ((1 + ratio).log() * negatives).sum(dim=1)
    weight = true_class_probability / true_class_probability.mean()
    loss = F.cross_entropy(student.head(features), y)
    return adv, update(optimiser, loss + 0.2 * (weight * (positive + negative)).mean())


def as_released(net: Net) -> Net:
    """Return a copy as in the authors' code: weights channels first, ReLUs not in place."""
    net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    features = net.features

    def features_not_in_place(x: Tensor) -> Tensor:
        in_place, F.relu_ = F.relu_, F.relu
        try:
            return features(x)
        finally:
            F.relu_ = in_place

    vars(net)["features"] = features_not_in_place
    return net


def optimiser_of(*modules: nn.Module) -> torch.optim.SGD:
    parameters = [value for module in modules for value in module.parameters()]
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


def serve(pipe: Connection, method: str, student: Net, teacher: Net, parts: nn.ModuleDict) -> None:
    """Train in another process, a step for each (seed, x, y) received, until None.

    Its memory is managed as usual. Sends seconds, loss and adversarial examples.
    """
    student, teacher = as_released(student), as_released(teacher)
    optimiser = optimiser_of(student, parts)
    for seed, x, y in iter(pipe.recv, None):
        torch.manual_seed(seed)
        start = time.perf_counter()
        adv, loss = globals()[method](student, teacher, optimiser, x, y, *parts.values())
        pipe.send((time.perf_counter() - start, float(loss), adv))


def draw_uniform(x: Tensor) -> Tensor:
    return (2 * torch.rand(x.shape, device=x.device) - 1) * BUDGET.eps


def attack_student(
    student: Net, x: Tensor, noise: Tensor, loss: Callable[[Tensor], Tensor]
) -> Tensor:
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


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.detach()


def loaded(root: Path, images: int, batch: int, workers: int) -> Iterator[list[Tensor]]:
    """Yield an epoch of CIFAR-10 batches of torchvision's data set, transforms and a DataLoader."""
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    dataset = datasets.CIFAR10(str(root), transform=transforms.Compose(steps))
    subset = Subset(dataset, range(images))
    yield from DataLoader(subset, batch, shuffle=True, drop_last=True, num_workers=workers)
