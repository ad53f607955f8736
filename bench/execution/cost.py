"""A short timed probe: what a step of a method costs on this machine, and from it what a run will take."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import methods.base
from bench import datasets, models
from bench.execution.plan import PlannedRun
from bench.training.trainer import TrainingModule
from methods.base import Batch, Budget

FEW, SMALL, SLOW = (
    2,
    8,
    0.25,
)  # images before the first try and in it; seconds beyond which a full batch is not tried
# Forward passes of evaluation per test image (a backward pass counts as one), where half of the images stand.
PASSES = {"fgsm": 2, "pgd20": 40, "pgd20_trades": 40, "cw_inf": 60, "aa": 4000}


@dataclass(frozen=True)
class Cost:
    """Seconds of training and of evaluation, and images sent through the student for each training image."""

    train: float
    evaluate: float
    student_passes: float


def measure(
    cell: PlannedRun, teachers: dict[str, str], sizes: tuple[int, int], device: torch.device
) -> Cost:
    """Times one step on random weights. `teachers`: role -> architecture; sizes: training and test images."""
    spec, info = cell.spec, datasets.get(cell.spec.dataset)
    student = models.build(spec.arch, info).to(device)
    frozen = {role: models.build(arch, info).to(device) for role, arch in teachers.items()}
    objective = TrainingModule(cell.method, student, frozen, sizes[0]).to(device)
    step(objective, cell, FEW, device)  # libraries are loaded
    seconds, passes = step(objective, cell, SMALL, device)
    per_image = seconds / SMALL
    if seconds < SLOW:
        size = min(spec.training.batch, sizes[0])
        per_image = step(objective, cell, size, device)[0] / size
    forward = inference(student, info.shape, device)
    attacked = {
        name: spec.limit_aa or sizes[1] if name == "aa" else sizes[1] for name in spec.attacks
    }
    others = sum(PASSES[name] * attacked[name] for name in spec.attacks if name not in ("aa",))
    full = len(spec.full_checkpoints) * PASSES["aa"] * min(attacked.get("aa", 0), sizes[1])
    return Cost(spec.training.epochs * sizes[0] * per_image, forward * (3 * others + full), passes)


def step(
    objective: TrainingModule, cell: PlannedRun, size: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of one loss and its gradient on `size` images, and forward passes of the student per image."""
    spec, info = cell.spec, datasets.get(cell.spec.dataset)
    x = torch.rand(size, *info.shape, device=device)
    y = torch.randint(info.num_classes, (size,), device=device)
    budget = Budget(spec.eps, spec.inner_step, spec.inner_steps)
    batch = Batch(x, y, torch.arange(size, device=device), 0, spec.training.epochs, size, budget)
    seen: list[int] = []

    def count(_: nn.Module, images: tuple[Tensor, ...]) -> None:
        seen.append(len(images[0]))

    stem = next(module for module in objective.student.modules() if isinstance(module, nn.Conv2d))
    hook = stem.register_forward_pre_hook(count)
    start = clock(device)
    objective.train()
    torch.stack(list(objective(batch, objective.attack(batch)).values())).sum().backward()  # type: ignore[no-untyped-call]
    seconds = clock(device) - start
    hook.remove()
    return seconds, sum(seen) / size


@torch.no_grad()
def inference(
    net: methods.base.Net, shape: tuple[int, ...], device: torch.device, size: int = 64
) -> float:
    """Seconds of a forward pass per image."""
    net.eval()
    x = torch.rand(size, *shape, device=device)
    net(x[:SMALL])
    start = clock(device)
    net(x)
    return (clock(device) - start) / size


def clock(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
