"""Two convolutions and a linear layer. The benchmark finds the features and normalises."""

from __future__ import annotations

from torch import nn

from bench.datasets import Dataset

NAMES = {r"plainnet-w(?P<width>[1-9]\d{0,3})": "plainnet-w<k>: two convolutions k channels wide"}
EXAMPLES = ("plainnet-w8",)


def build(info: Dataset, width: str) -> nn.Module:
    """Build a network for the channels and classes of a data set."""
    channels, layers = info.shape[0], list[nn.Module]()
    for _ in range(2):
        layers += nn.Conv2d(channels, int(width), 3, bias=False), nn.BatchNorm2d(int(width))
        layers += (nn.ReLU(),)
        channels = int(width)
    layers += nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, info.num_classes)
    return nn.Sequential(*layers)
