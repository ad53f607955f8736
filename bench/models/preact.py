"""Pre-activation ResNet-18 for small images.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, in the variant of Rice et al., "Overfitting in
adversarially robust deep learning", ICML 2020: BatchNorm and ReLU before the last layer. Parameter names are those of
that release and of RobustBench.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bench.datasets import Dataset
from methods.base import Net


class Block(nn.Module):
    """BatchNorm and ReLU before each 3x3 convolution; a 1x1 shortcut from the activated input where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu_(self.bn1(x))
        out: Tensor = self.conv2(F.relu_(self.bn2(self.conv1(active))))
        return out.add_(self.shortcut(active) if len(self.shortcut) else x)


class PreActResNet18(Net):
    """Four stages of two blocks, the first `width` channels wide; each further one halves the image and doubles them."""

    def __init__(self, info: Dataset, width: int) -> None:
        super().__init__(info.mean, info.std)
        self.num_classes = info.num_classes
        self.width = 8 * width
        self.conv1 = nn.Conv2d(info.shape[0], width, 3, 1, 1, bias=False)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        self.bn = nn.BatchNorm2d(self.width)
        self.linear = nn.Linear(self.width, self.num_classes)

    def features(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(self.normalise(x))))))
        return F.relu_(self.bn(out)).mean(dim=(2, 3))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.linear(f)
        return logits
