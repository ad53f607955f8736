"""Vision transformers for small images: an 8 x 8 grid of patches, LayerNorm and no BatchNorm.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; the size "tiny" is that of Touvron
et al., "Training data-efficient image transformers", ICML 2021. The mean over the patches, without
a class token, is the feature, as in Beyer et al., "Better plain ViT baselines for ImageNet-1k",
2022.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor, nn

from bench.datasets import Dataset
from methods.base import Net

NAMES = {"vit-tiny": "ViT-Tiny: 12 blocks, 192 wide, 8 x 8 patches of the image"}
EXAMPLES = ("vit-tiny",)
GRID = 8  # patches along a side, of the largest size that divides the image


class Block(nn.Module):
    """Attention between the patches, then a perceptron on each; LayerNorm before both."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def attend(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Written out: torch's fused attention has no gradient of its gradient, which methods need.
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        mixed: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return mixed


class ViT(Net):
    """5.4 million parameters on CIFAR-10 at the default size."""

    def __init__(self, info: Dataset, width: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__(info.mean, info.std)
        self.num_classes, self.width = info.num_classes, width
        channels, height, breadth = info.shape
        common = gcd(height, breadth)
        largest = max(1, common // GRID)
        patch = max(size for size in range(1, largest + 1) if common % size == 0)
        self.embed = nn.Conv2d(channels, width, patch, patch)
        count = height // patch * (breadth // patch)
        self.position = nn.Parameter(torch.zeros(1, count, width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, self.num_classes)
        nn.init.trunc_normal_(self.position, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def features(self, x: Tensor) -> Tensor:
        patches = self.embed(self.normalise(x)).flatten(2).mT
        tokens: Tensor = self.norm(self.blocks(patches + self.position))
        return tokens.mean(dim=1)

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.linear(f)
        return logits


def build(info: Dataset) -> Net:
    """Build a ViT-Tiny."""
    return ViT(info)
