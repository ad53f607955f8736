"""Small networks and data that several test files share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.datasets import augmentation, loading

Task = tuple[nn.Module, Tensor, Tensor]


def trained(classes: int, steps: int = 60) -> Task:
    """Train a convolutional net with BatchNorm on one-step adversarial digits.

    Returns it with 24 test images and their labels.
    """
    torch.manual_seed(0)
    digits = loading.load_data("digits", "")
    in_train, in_test = digits.train.y < classes, digits.test.y < classes
    x, y = augmentation.to_float(digits.train.x[in_train]), digits.train.y[in_train]
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
    return (
        net.eval(),
        augmentation.to_float(digits.test.x[in_test])[:24],
        digits.test.y[in_test][:24],
    )
