"""MobileNetV2 for small images: the first two strides are 1.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018. Parameter
names are those of the CIFAR version that this literature shares; like it, a block of stride 1 that
changes the channels has a 1x1 shortcut.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bench.datasets import Dataset
from methods.base import Net

NAMES = {"mobilenetv2": "MobileNetV2 for CIFAR"}
EXAMPLES = ("mobilenetv2",)

# Expansion, channels, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Block(nn.Module):
    """Expand, depthwise, project; a shortcut where the stride is 1."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.residual = stride == 1
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if self.residual and inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu_(self.bn1(self.conv1(x)))
        inner = F.relu_(self.bn2(self.conv2(inner)))
        out: Tensor = self.bn3(self.conv3(inner))
        if self.residual:
            return out.add_(self.shortcut(x))
        return out


class MobileNetV2(Net):
    """2.3 million parameters on CIFAR-10."""

    def __init__(self, info: Dataset) -> None:
        super().__init__(info.mean, info.std)
        self.num_classes = info.num_classes
        self.width = 1280
        self.conv1 = nn.Conv2d(info.shape[0], 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        inputs = 32
        self.layers = nn.Sequential()
        for expansion, channels, count, stride in STAGES:
            self.layers.append(Block(inputs, channels, expansion, stride))
            for _ in range(count - 1):
                self.layers.append(Block(channels, channels, expansion, 1))
            inputs = channels
        self.conv2 = nn.Conv2d(inputs, self.width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(self.width)
        self.linear = nn.Linear(self.width, self.num_classes)

    def features(self, x: Tensor) -> Tensor:
        out = F.relu_(self.bn1(self.conv1(self.normalise(x))))
        out = F.relu_(self.bn2(self.conv2(self.layers(out))))
        return out.mean(dim=(2, 3))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.linear(f)
        return logits


def build(info: Dataset) -> Net:
    """Build a MobileNetV2."""
    return MobileNetV2(info)
