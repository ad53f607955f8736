"""The networks of DeepMind's robust models: SiLU for ReLU, and the padding of TensorFlow's "SAME".

Gowal et al., "Uncovering the Limits of Adversarial Training against Norm-Bounded Adversarial Examples", 2020, and the
releases that took them over (Rebuffi et al. 2021, Gowal et al. 2021, Wang et al. 2023). Swish with beta = 1 is SiLU:
x times the sigmoid of x. Parameter names are those of the releases and of RobustBench. A convolution of stride 2 pads
its input at the right and below alone.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bench.datasets import Dataset
from methods.base import Net


def conv3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """A 3x3 convolution of an input that `same` has padded."""
    return nn.Conv2d(inputs, outputs, 3, stride, 0, bias=False)


def same(x: Tensor, stride: int) -> Tensor:
    """Zero padding for a 3x3 convolution of stride 1 or 2 on an image of even size."""
    return F.pad(x, (2 - stride, 1, 2 - stride, 1))


class WideBlock(nn.Module):
    """BatchNorm and SiLU before each convolution; where the channels change the shortcut sees the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = conv3(inputs, outputs, stride)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        active = F.silu(self.batchnorm_0(x))
        out: Tensor = self.conv_1(F.silu(self.batchnorm_1(self.conv_0(same(active, self.stride)))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class Group(nn.Module):
    """Blocks in a row, under the name `block`."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(inputs, outputs, stride)
        self.block = nn.Sequential(
            first, *(WideBlock(outputs, outputs, 1) for _ in range(count - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class WideResNet(Net):
    """Depth 6n + 4, three groups of 16, 32 and 64 times `factor` channels."""

    def __init__(self, info: Dataset, depth: int, factor: int) -> None:
        super().__init__(info.mean, info.std)
        self.num_classes = info.num_classes
        self.width = 64 * factor
        count = (depth - 4) // 6
        self.init_conv = nn.Conv2d(info.shape[0], 16, 3, 1, 1, bias=False)
        self.layer = nn.Sequential(
            Group(count, 16, 16 * factor, 1),
            Group(count, 16 * factor, 32 * factor, 2),
            Group(count, 32 * factor, 64 * factor, 2),
        )
        self.batchnorm = nn.BatchNorm2d(self.width)
        self.logits = nn.Linear(self.width, self.num_classes)

    def features(self, x: Tensor) -> Tensor:
        out = self.layer(self.init_conv(self.normalise(x)))
        return F.silu(self.batchnorm(out)).mean(dim=(2, 3))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.logits(f)
        return logits


class PreActBlock(nn.Module):
    """BatchNorm and SiLU before each convolution; a 3x3 shortcut from the bare input where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_2d_1 = conv3(inputs, outputs, stride)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_2d_2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = conv3(inputs, outputs, stride) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_2d_1(same(F.silu(self.batchnorm_0(x)), self.stride))
        out = self.conv_2d_2(F.silu(self.batchnorm_1(out)))
        kept = x if self.shortcut is None else self.shortcut(same(x, self.stride))
        total: Tensor = out + kept
        return total


class PreActResNet18(Net):
    """Four stages of two blocks, the first `width` channels wide; each further one halves the image and doubles them."""

    def __init__(self, info: Dataset, width: int) -> None:
        super().__init__(info.mean, info.std)
        self.num_classes = info.num_classes
        self.width = 8 * width
        self.conv_2d = nn.Conv2d(info.shape[0], width, 3, 1, 1, bias=False)
        self.layer_0 = nn.Sequential(PreActBlock(width, width, 1), PreActBlock(width, width, 1))
        self.layer_1 = nn.Sequential(
            PreActBlock(width, 2 * width, 2), PreActBlock(2 * width, 2 * width, 1)
        )
        self.layer_2 = nn.Sequential(
            PreActBlock(2 * width, 4 * width, 2), PreActBlock(4 * width, 4 * width, 1)
        )
        self.layer_3 = nn.Sequential(
            PreActBlock(4 * width, 8 * width, 2), PreActBlock(8 * width, 8 * width, 1)
        )
        self.batchnorm = nn.BatchNorm2d(self.width)
        self.logits = nn.Linear(self.width, self.num_classes)

    def features(self, x: Tensor) -> Tensor:
        out = self.layer_3(
            self.layer_2(self.layer_1(self.layer_0(self.conv_2d(self.normalise(x)))))
        )
        return F.silu(self.batchnorm(out)).mean(dim=(2, 3))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.logits(f)
        return logits
