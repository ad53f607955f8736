"""WideResNet.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016. Parameter names are those of the TRADES release and of
RobustBench; the block that TRADES stores and never uses (`sub_block1`) is dropped when a checkpoint is read.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bench.datasets import Dataset
from methods.base import Net


class Block(nn.Module):
    """BatchNorm and ReLU before each convolution; where the channels change the shortcut sees the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu_(self.bn1(x))
        out: Tensor = self.conv2(F.relu_(self.bn2(self.conv1(active))))
        return out.add_(x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    """Blocks in a row, under the name `layer`."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(Net):
    """Depth 6n + 4, three stages of 16, 32 and 64 times `factor` channels."""

    def __init__(self, info: Dataset, depth: int, factor: int) -> None:
        super().__init__(info.mean, info.std)
        self.num_classes = info.num_classes
        self.width = 64 * factor
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(info.shape[0], 16, 3, 1, 1, bias=False)
        self.block1 = Stage(count, 16, 16 * factor, 1)
        self.block2 = Stage(count, 16 * factor, 32 * factor, 2)
        self.block3 = Stage(count, 32 * factor, 64 * factor, 2)
        self.bn1 = nn.BatchNorm2d(self.width)
        self.fc = nn.Linear(self.width, self.num_classes)

    def features(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(self.normalise(x)))))
        return F.relu_(self.bn1(out)).mean(dim=(2, 3))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.fc(f)
        return logits
