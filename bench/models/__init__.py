"""The networks by name. No torch until one is built.

resnet18, resnet18-w<k>     ResNet-18 with the CIFAR stem, first stage k channels wide (64 unless told)
resnet<d>-w<k>              the three-stage CIFAR ResNet of depth d = 6n + 2, first stage k channels wide
...-s2                      either ResNet with a stem of stride 2, a quarter of the cost
mobilenetv2                 MobileNetV2 for CIFAR
preactresnet18              pre-activation ResNet-18; -w<k> as above
wrn<d>-<k>                  WideResNet of depth d = 6n + 4 and widening factor k
...-silu                    either of the last two in DeepMind's layout, with SiLU (Swish) for ReLU
"""

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
PATTERN = re.compile(
    r"(?P<mobile>mobilenetv2)"
    r"|(wrn(?P<wide>\d+)-(?P<factor>\d+)|preactresnet18(-w(?P<preact>\d+))?)(?P<silu>-silu)?"
    r"|(resnet18(-w(?P<w18>\d+))?|resnet(?P<depth>\d+)-w(?P<width>\d+))(?P<stem>-s2)?"
)


def check(arch: str) -> None:
    """Raises UsageError unless `build` would accept `arch`."""
    _parse(arch)


def build(arch: str, info: Dataset) -> Net:
    """A freshly initialised network for a data set, with its normalisation inside. Raises UsageError for a bad name."""
    family, sizes = _parse(arch)
    if family.endswith("-silu"):
        from bench.models import silu

        return (silu.WideResNet if family == "wrn-silu" else silu.PreActResNet18)(info, *sizes)
    if family == "wrn":
        from bench.models.wideresnet import WideResNet

        return WideResNet(info, *sizes)
    if family == "preactresnet18":
        from bench.models.preact import PreActResNet18

        return PreActResNet18(info, *sizes)
    if family == "mobilenetv2":
        from bench.models.mobilenet import MobileNetV2

        return MobileNetV2(info)
    from bench.models.resnet import ResNet

    *shape, stem = sizes
    if family == "resnet18":
        return ResNet(info, blocks=(2, 2, 2, 2), width=shape[0], stem=stem)
    return ResNet(info, blocks=((shape[0] - 2) // 6,) * 3, width=shape[1], stem=stem)


def _parse(arch: str) -> tuple[str, tuple[int, ...]]:
    """Family and its sizes."""
    match = PATTERN.fullmatch(arch)
    if not match:
        raise unknown_name("model", arch, EXAMPLES)
    part = match.groupdict()
    if part["mobile"]:
        return "mobilenetv2", ()
    if part["wide"]:
        return f"wrn{part['silu'] or ''}", (
            _depth(arch, part["wide"], 4),
            _positive(arch, part["factor"]),
        )
    if arch.startswith("preactresnet18"):
        return f"preactresnet18{part['silu'] or ''}", (_positive(arch, part["preact"] or "64"),)
    stem = 2 if part["stem"] else 1
    if part["depth"] and part["depth"] != "18":
        return "resnet", (_depth(arch, part["depth"], 2), _positive(arch, part["width"]), stem)
    return "resnet18", (_positive(arch, part["w18"] or part["width"] or "64"), stem)


def _positive(arch: str, text: str) -> int:
    if not 1 <= int(text) <= 1024:
        raise UsageError(f"model {arch!r}: the width must be between 1 and 1024")
    return int(text)


def _depth(arch: str, text: str, plus: int) -> int:
    if not 6 + plus <= int(text) <= 1024 or (int(text) - plus) % 6:
        raise UsageError(
            f"model {arch!r}: the depth must be 6n + {plus}, such as {6 + plus}, and at most 1024"
        )
    return int(text)
