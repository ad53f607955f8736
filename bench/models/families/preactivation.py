"""WideResNet and pre-activation ResNet-18 for small images, with ReLU or SiLU.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016. He et al., "Identity Mappings in Deep
Residual Networks", ECCV 2016, in the variant of Rice et al., "Overfitting in adversarially robust
deep learning", ICML 2020: BatchNorm and ReLU before the last layer.

SiLU is DeepMind's: Gowal et al., "Uncovering the Limits of Adversarial Training against
Norm-Bounded Adversarial Examples", 2020, and the releases that took it over (Rebuffi et al. 2021,
Gowal et al. 2021, Wang et al. 2023). Swish with beta = 1 is SiLU: x times the sigmoid of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from bench.datasets import Dataset
from bench.models import count_blocks, parse_number
from methods.base import Net

NAMES = {
    r"wrn(?P<depth>\d+)-(?P<width>\d+)(?P<silu>-silu)?": "wrn<d>-<k>: WideResNet of depth "
    "d = 6n + 4 and widening factor k; -silu: as DeepMind's, with SiLU (Swish) for ReLU",
    r"preactresnet18(-w(?P<width>\d+))?(?P<silu>-silu)?": "pre-activation ResNet-18; -w<k>: first "
    "stage k channels wide, 64 without; -silu: as DeepMind's, with SiLU (Swish) for ReLU",
}
EXAMPLES = (
    "preactresnet18",
    "preactresnet18-silu",
    "wrn28-10",
    "wrn28-10-silu",
    "wrn34-10",
    "wrn70-16-silu",
)


@dataclass(frozen=True)
class Layout:
    """How a release computes and names its parts; files of this project keep the names.

    stage: name of each, with a number from `first_stage`.
    block: BatchNorm, convolution, BatchNorm, convolution.
    silu: SiLU for ReLU, and the padding of TensorFlow's "SAME" for symmetric padding.
    bare_shortcut: a 3x3 shortcut of the bare input, not a 1x1 shortcut of the activated input.
    """

    stem: str
    stage: str
    first_stage: int
    block: tuple[str, str, str, str]
    shortcut: str
    norm: str
    linear: str
    silu: bool = False
    bare_shortcut: bool = False

    def activate(self, x: Tensor) -> Tensor:
        if self.silu:
            return F.silu(x)
        return F.relu_(x)


RELU_BLOCK = ("bn1", "conv1", "bn2", "conv2")
WIDE_BLOCK = ("batchnorm_0", "conv_0", "batchnorm_1", "conv_1")
PREACT_BLOCK = ("batchnorm_0", "conv_2d_1", "batchnorm_1", "conv_2d_2")

# TRADES, Rice et al., and DeepMind's two; RobustBench has the same names.
WIDE = Layout("conv1", "block{}.layer", 1, RELU_BLOCK, "convShortcut", "bn1", "fc")
PREACT = Layout("conv1", "layer{}", 1, RELU_BLOCK, "shortcut.0", "bn", "linear")
SILU_WIDE = Layout(
    "init_conv", "layer.{}.block", 0, WIDE_BLOCK, "shortcut", "batchnorm", "logits", silu=True
)
SILU_PREACT = Layout(
    "conv_2d", "layer_{}", 0, PREACT_BLOCK, "shortcut", "batchnorm", "logits", True, True
)


def add_part(parent: nn.Module, name: str, part: nn.Module | None) -> None:
    """Register `part` under a dotted name, in Sequentials that are made where there are none."""
    *containers, last = name.split(".")
    for container in containers:
        if not hasattr(parent, container):
            parent.add_module(container, nn.Sequential())
        parent = parent.get_submodule(container)
    parent.add_module(last, part)


class Block(nn.Module):
    """BatchNorm and activation before each 3x3 convolution, and a shortcut.

    The shortcut is a convolution where the number of channels changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.stride = stride
        self.widens = inputs != outputs
        padding = 0 if layout.silu else 1
        norm1, conv1, norm2, conv2 = layout.block
        self.add_module(norm1, nn.BatchNorm2d(inputs))
        self.add_module(conv1, nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False))
        self.add_module(norm2, nn.BatchNorm2d(outputs))
        self.add_module(conv2, nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False))
        shortcut = None
        if self.widens:
            side = 3 if layout.bare_shortcut else 1
            shortcut = nn.Conv2d(inputs, outputs, side, stride, bias=False)
        add_part(self, layout.shortcut, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        norm1, conv1, norm2, conv2 = [getattr(self, name) for name in self.layout.block]
        active = self.layout.activate(norm1(x))
        out: Tensor = conv1(self.pad(active))
        out = conv2(self.layout.activate(norm2(out)))
        if not self.widens:
            return out.add_(x)
        shortcut = self.get_submodule(self.layout.shortcut)
        if self.layout.bare_shortcut:
            return out.add_(shortcut(self.pad(x)))
        return out.add_(shortcut(active))

    def pad(self, x: Tensor) -> Tensor:
        """Zero-pad an image of even size for a 3x3 convolution that pads nothing itself."""
        if not self.layout.silu:
            return x
        # "SAME" pads for a stride of 2 at the right and below alone.
        before = 2 - self.stride
        return F.pad(x, (before, 1, before, 1))


class PreActivationNet(Net):
    """A 3x3 stem and stages of `count` blocks; each stage after the first halves the image.

    widths: channels of the stem and of each stage.
    """

    def __init__(self, info: Dataset, layout: Layout, widths: list[int], count: int) -> None:
        super().__init__(info.mean, info.std)
        self.num_classes = info.num_classes
        self.width = widths[-1]
        self.layout = layout
        self.stages = []
        inputs, *stage_widths = widths
        self.add_module(layout.stem, nn.Conv2d(info.shape[0], inputs, 3, 1, 1, bias=False))
        stride = 1
        for number, outputs in enumerate(stage_widths, layout.first_stage):
            blocks = nn.Sequential(Block(inputs, outputs, stride, layout))
            for _ in range(count - 1):
                blocks.append(Block(outputs, outputs, 1, layout))
            self.stages.append(layout.stage.format(number))
            add_part(self, self.stages[-1], blocks)
            inputs, stride = outputs, 2
        self.add_module(layout.norm, nn.BatchNorm2d(self.width))
        self.add_module(layout.linear, nn.Linear(self.width, self.num_classes))

    def features(self, x: Tensor) -> Tensor:
        out = getattr(self, self.layout.stem)(self.normalise(x))
        for name in self.stages:
            out = self.get_submodule(name)(out)
        out = self.layout.activate(getattr(self, self.layout.norm)(out))
        return out.mean(dim=(2, 3))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = getattr(self, self.layout.linear)(f)
        return logits


def build(info: Dataset, depth: str = "", width: str = "64", silu: str = "") -> Net:
    """Build a WideResNet; without a depth a pre-activation ResNet-18, which has four stages."""
    number = parse_number(width, "width")
    if depth:
        widths = [16, 16 * number, 32 * number, 64 * number]
        layout = SILU_WIDE if silu else WIDE
        return PreActivationNet(info, layout, widths, count_blocks(depth, 4))
    widths = [number, number, 2 * number, 4 * number, 8 * number]
    return PreActivationNet(info, SILU_PREACT if silu else PREACT, widths, 2)
