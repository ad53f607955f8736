"""The options that several commands share. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, arg

Number = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the suite's)")]
Measured = Annotated[int, arg(metavar="N")]
StoreFolder = Annotated[
    Path, arg(metavar="DIR", help="where records, teachers and unfinished work live")
]
DataFolder = Annotated[Path, arg(metavar="DIR", help="where the data sets live")]
DryRun = Annotated[
    FlagCreatePairsOff[bool], arg(help="show what would be done, with an estimate, and stop")
]
Speed = Annotated[
    FlagCreatePairsOff[bool], arg(help="measure what training costs here, suite by suite")
]
Device = Annotated[str, arg(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps")]


@dataclass(frozen=True)
class CommonOptions:
    """Folders and device of every command that trains or attacks."""

    store: StoreFolder = Path("runs")
    data_root: DataFolder = Path("data")
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions(CommonOptions):
    """What a run may change of its suite. Each change is part of the record."""

    suite: Annotated[str, arg(metavar="NAME", help="the protocol; see `list`")] = "digits"
    dataset: Annotated[
        str,
        arg(
            metavar="NAMES",
            help="some of the suite's data sets, with commas",
            help_behavior_hint="(default: all)",
        ),
    ] = ""
    limit_train: Annotated[Number, arg(help="use the first N training images, teachers too")] = None
    limit_test: Annotated[Number, arg(help="use the first N test images, teachers too")] = None
    precision: Annotated[
        Literal["fp32", "bf16"],
        arg(help="bf16: autocast in training; fp32 where the device has no bf16"),
    ] = "fp32"
    workers: Annotated[int, arg(metavar="N", help="processes that share the cores, a run each")] = 1
    sync_batchnorm: Annotated[
        FlagCreatePairsOff[bool],
        arg(help="under torchrun, BatchNorm over all devices' images and not over each one's"),
    ] = False
    force: Annotated[FlagCreatePairsOff[bool], arg(help="repeat what is already recorded")] = False


@dataclass(frozen=True, kw_only=True)
class RunOptions(ProtocolOptions):
    """Which students to train, and how they may differ from the suite's."""

    method: Annotated[
        str,
        arg(
            metavar="NAMES",
            help="methods, with commas, or all",
            help_behavior_hint="(required, or --config)",
        ),
    ] = ""
    student: Annotated[
        str,
        arg(
            metavar="NAMES", help="models, with commas", help_behavior_hint="(default: the suite's)"
        ),
    ] = ""
    teacher: Annotated[str, arg(metavar="NAME", help="robust, natural or an imported teacher")] = (
        "robust"
    )
    seeds: Annotated[
        str, arg(metavar="LIST", help="such as 0,1,2", help_behavior_hint="(default: the suite's)")
    ] = ""
    epochs: Annotated[
        Number, arg(help="for the students", help_behavior_hint="(default: the suite's)")
    ] = None
    official: Annotated[
        FlagCreatePairsOff[bool],
        arg(help="as the authors' script does it, oddities included; see docs/methods.md"),
    ] = False
    awp: Annotated[
        float,
        arg(metavar="X", help="adversarial weight perturbation, of this relative size; 0.005, say"),
    ] = 0.0
    config: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="a configuration that `tune` wrote: method, suite, student and all values",
        ),
    ] = None
