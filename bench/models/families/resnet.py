"""ResNets for small images: stem of one 3x3 convolution, no pooling after it.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Parameter names are those of
the CIFAR ResNet-18 that this literature shares, so that its checkpoints load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bench.datasets import Dataset
from bench.models import count_blocks, parse_number
from methods.base import Net

# "resnet18-w16" has the form of the second one too.
NAMES = {
    r"resnet18(-w(?P<width>\d+))?(?P<stem>-s2)?": "ResNet-18 with the CIFAR stem; -w<k>: first "
    "stage k channels wide, 64 without; -s2: a stem of stride 2, a quarter of the cost",
    r"resnet(?P<depth>\d+)-w(?P<width>\d+)(?P<stem>-s2)?": "resnet<d>-w<k>: three-stage CIFAR "
    "ResNet of depth d = 6n + 2, first stage k wide; -s2: a stem of stride 2, a quarter of the "
    "cost",
}
EXAMPLES = ("resnet18", "resnet18-w16", "resnet18-w16-s2", "resnet20-w16", "resnet8-w4")


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.bn1(self.conv1(x)))
        return F.relu_(self.bn2(self.conv2(out)).add_(self.shortcut(x)))


class ResNet(Net):
    """Stages of `blocks` blocks; each after the first halves the image and doubles the channels.

    stem: stride of the first convolution; 2 makes a network of about a quarter of the cost.
    """

    def __init__(self, info: Dataset, blocks: tuple[int, ...], width: int, stem: int = 1) -> None:
        super().__init__(info.mean, info.std)
        self.num_classes = info.num_classes
        self.width = width * 2 ** (len(blocks) - 1)
        self.conv1 = nn.Conv2d(info.shape[0], width, 3, stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        inputs = width
        stride = 1
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            layer = nn.Sequential(Block(inputs, outputs, stride))
            for _ in range(count - 1):
                layer.append(Block(outputs, outputs, 1))
            self.add_module(f"layer{stage + 1}", layer)
            inputs, stride = outputs, 2
        self.linear = nn.Linear(self.width, self.num_classes)

    def features(self, x: Tensor) -> Tensor:
        out = F.relu_(self.bn1(self.conv1(self.normalise(x))))
        for stage in range(self.stages):
            out = getattr(self, f"layer{stage + 1}")(out)
        return out.mean(dim=(2, 3))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.linear(f)
        return logits


def build(info: Dataset, depth: str = "", width: str = "64", stem: str = "") -> Net:
    """Build a ResNet; without a depth ResNet-18, which has four stages."""
    blocks = (count_blocks(depth, 2),) * 3 if depth else (2, 2, 2, 2)
    return ResNet(info, blocks, parse_number(width, "width"), stem=2 if stem else 1)
