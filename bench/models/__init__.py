"""The networks by name, whose patterns ABOUT explains. No torch until one is built."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bench.datasets import Dataset
from bench.system.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from methods.base import Net

EXAMPLES = (
    "mobilenetv2",
    "preactresnet18",
    "preactresnet18-silu",
    "resnet18",
    "resnet18-w16",
    "resnet18-w16-s2",
    "resnet20-w16",
    "resnet8-w4",
    "wrn28-10",
    "wrn28-10-silu",
    "wrn34-10",
    "wrn70-16-silu",
)
# Checked in this order: "resnet18-w16" has the form of the last one too.
PATTERNS = {
    "mobilenetv2": re.compile("mobilenetv2"),
    "wrn": re.compile(r"wrn(?P<depth>\d+)-(?P<width>\d+)(?P<silu>-silu)?"),
    "preactresnet18": re.compile(r"preactresnet18(-w(?P<width>\d+))?(?P<silu>-silu)?"),
    "resnet18": re.compile(r"resnet18(-w(?P<width>\d+))?(?P<stem>-s2)?"),
    "resnet": re.compile(r"resnet(?P<depth>\d+)-w(?P<width>\d+)(?P<stem>-s2)?"),
}
STRIDE_2 = "-s2: a stem of stride 2, a quarter of the cost"
SILU = "-silu: as DeepMind's, with SiLU (Swish) for ReLU"
ABOUT = {
    "mobilenetv2": "MobileNetV2 for CIFAR",
    "wrn": f"wrn<d>-<k>: WideResNet of depth d = 6n + 4 and widening factor k; {SILU}",
    "preactresnet18": "pre-activation ResNet-18; -w<k>: first stage k channels wide, 64 without; "
    + SILU,
    "resnet18": "ResNet-18 with the CIFAR stem; -w<k>: first stage k channels wide, 64 without; "
    + STRIDE_2,
    "resnet": "resnet<d>-w<k>: three-stage CIFAR ResNet of depth d = 6n + 2, first stage k wide; "
    + STRIDE_2,
}
# A depth is 6n plus this number of layers outside the blocks.
LAYERS_OUTSIDE_BLOCKS = {"wrn": 4, "resnet": 2}


def check(arch: str) -> None:
    """Raise UsageError unless `build` accepts `arch`."""
    parse_name(arch)


def build(arch: str, info: Dataset) -> Net:
    """Build a freshly initialised network for a data set, with its normalisation inside.

    Raise UsageError for a name that stands for no network.
    """
    family, depth, width, options = parse_name(arch)
    if family == "mobilenetv2":
        from bench.models.mobilenet import MobileNetV2

        return MobileNetV2(info)
    if family in ("wrn", "preactresnet18"):
        from bench.models import preactivation

        silu = "silu" in options
        if family == "wrn":
            return preactivation.wide_resnet(info, depth, width, silu)
        return preactivation.preact_resnet18(info, width, silu)
    from bench.models.resnet import ResNet

    blocks = (2, 2, 2, 2) if family == "resnet18" else ((depth - 2) // 6,) * 3
    return ResNet(info, blocks, width, stem=2 if "stem" in options else 1)


def match_family(arch: str) -> tuple[str, dict[str, str | None]]:
    """Return the family of a name and the parts of its pattern. Raise UsageError without one."""
    for family, pattern in PATTERNS.items():
        match = pattern.fullmatch(arch)
        if match:
            return family, match.groupdict()
    raise unknown_name("model", arch, EXAMPLES)


def parse_name(arch: str) -> tuple[str, int, int, set[str]]:
    """Return family, depth (0 if fixed), width and the options "silu" and "stem" that are on."""
    family, parts = match_family(arch)
    depth = int(parts.get("depth") or 0)
    width = int(parts.get("width") or 64)
    outside = LAYERS_OUTSIDE_BLOCKS.get(family)
    if outside and (not 6 + outside <= depth <= 1024 or (depth - outside) % 6):
        form = f"6n + {outside}, such as {6 + outside}, and at most 1024"
        raise UsageError(f"model {arch!r}: the depth must be {form}")
    if not 1 <= width <= 1024:
        raise UsageError(f"model {arch!r}: the width must be between 1 and 1024")
    return family, depth, width, {name for name in ("silu", "stem") if parts.get(name)}
