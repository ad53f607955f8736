"""Small tasks that several test files share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.datasets import augmentation, loading

Task = tuple[nn.Module, Tensor, Tensor]


def trained(classes: int, steps: int = 60) -> Task:
    """A convolutional net with BatchNorm, trained on one-step adversarial digits; with 24 test images and labels."""
    torch.manual_seed(0)
    digits = loading.load_data("digits", "")
    some, held = digits.train.y < classes, digits.test.y < classes
    x, y = augmentation.to_float(digits.train.x[some]), digits.train.y[some]
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, classes),
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        images = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(images), y), images)
        optimiser.zero_grad()
        F.cross_entropy(net((x + 0.1 * gradient.sign()).clamp(0, 1)), y).backward()
        optimiser.step()
    return net.eval(), augmentation.to_float(digits.test.x[held])[:24], digits.test.y[held][:24]
