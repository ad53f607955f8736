"""The options that several commands share, and options as values. No torch here."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from tyro.conf import FlagCreatePairsOff, Positional, arg

from bench.system.errors import UsageError

Switch = FlagCreatePairsOff[bool]


def option(metavar: str | None = None, text: str | None = None, default: str = "") -> Any:
    """Describe an option: the name of its value, its help text, its default in words."""
    hint = f"(default: {default})" if default else None
    return arg(metavar=metavar, help=text, help_behavior_hint=hint)


OF_SUITE = "the suite's"
Number = Annotated[int | None, option("N", default=OF_SUITE)]
StoreFolder = Annotated[Path, option("DIR", "where records, teachers and unfinished work live")]
DataFolder = Annotated[Path, option("DIR", "where the data sets live")]
Device = Annotated[str, option("NAME", "auto, cpu, cuda, cuda:1 or mps")]
Students = Annotated[str, option("NAMES", "models, with commas; see `list models`", OF_SUITE)]
Teacher = Annotated[
    str, option("NAME", "robust, natural, an imported teacher, or a model to train as one")
]
Methods = Annotated[
    str,
    arg(
        metavar="NAMES",
        help="methods, with commas, or all",
        help_behavior_hint="(required, or --config; else the rows of a suite that has them)",
    ),
]
DryRun = Annotated[
    Switch,
    option(text="show what would be done, what data is missing and an estimate; fetch nothing"),
]
Quiet = Annotated[Switch, arg(aliases=["-q"], help="show results and errors alone")]
Verbose = Annotated[
    Switch, arg(aliases=["-v"], help="show each epoch, decisions for the device, warnings too")
]
Json = Annotated[Switch, option(text="print one JSON document, nothing else")]
Precision = Annotated[
    Literal["fp32", "bf16"],
    option(text="bf16: autocast in training; fp32 where the device has no bf16"),
]

Search = Annotated[
    Literal["auto", "exact", "device"],
    option(text="of attacks: batch by batch, or in full passes; auto: device on CUDA"),
]
SearchPrecision = Annotated[
    Literal["auto", "fp32", "tf32", "bf16"],
    option(text="of a device's search; verdicts are in fp32; auto: tf32 where there is one"),
]


Workers = Annotated[
    int | Literal["auto"],
    option("N|auto", "processes that share the cores, a run each; auto: one for each CUDA device"),
]


@dataclass(frozen=True)
class CommonOptions:
    """Folders and device of every command that trains or attacks."""

    store: StoreFolder = Path("runs")
    data_root: DataFolder = Path("data")
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions(CommonOptions):
    """Changes of a run to its suite. Each is part of the record."""

    suite: Annotated[str, option("NAME|FILE.toml", "the protocol; see `list`")] = "digits"
    dataset: Annotated[
        str, option("NAMES", "some of the suite's data sets, with commas", "all")
    ] = ""
    limit_train: Annotated[Number, option(text="use the first N training images, teachers too")] = (
        None
    )
    limit_test: Annotated[Number, option(text="use the first N test images, teachers too")] = None
    precision: Precision = "fp32"
    search: Search = "auto"
    search_precision: SearchPrecision = "auto"
    workers: Workers = 1
    ray: Annotated[
        str,
        option(
            "ADDRESS", "runs as tasks of a Ray cluster; auto: the one of here; local: a new one"
        ),
    ] = ""
    gpus_per_run: Annotated[
        float | None, option("X", "GPUs of a run's task on Ray; a fraction shares one", "1, if any")
    ] = None
    strict: Annotated[
        Switch, option(text="refuse a grid that another version of the code has begun")
    ] = False
    sync_batchnorm: Annotated[
        Switch,
        option(text="under torchrun, BatchNorm over all devices' images and not over each one's"),
    ] = False
    force: Annotated[Switch, option(text="repeat what is already recorded")] = False
    quiet: Quiet = False
    verbose: Verbose = False


@dataclass(frozen=True, kw_only=True)
class RunOptions(ProtocolOptions):
    """Which students to train, and how they may differ from the suite's."""

    method: Methods = ""
    student: Students = ""
    teacher: Teacher = "robust"
    seeds: Annotated[str, option("LIST", "such as 0,1,2", OF_SUITE)] = ""
    epochs: Annotated[Number, option(text="for the students", default=OF_SUITE)] = None
    lr: Annotated[float | None, option("X", "learning rate of the students", OF_SUITE)] = None
    momentum: Annotated[float | None, option("X", "for the students", OF_SUITE)] = None
    weight_decay: Annotated[float | None, option("X", "for the students", OF_SUITE)] = None
    official: Annotated[
        Switch,
        option(
            text="as the authors' script does it, with its oddities (docs/reference/methods.md)"
        ),
    ] = False
    awp: Annotated[
        float, option("X", "adversarial weight perturbation, of this relative size; 0.005, say")
    ] = 0.0
    tuned: Annotated[
        int, option("N", "say in the record that a search of N trials found the values")
    ] = 0


@dataclass(frozen=True)
class Option:
    """A field of a dataclass as an option of a command; metadata: what `option` and tyro say."""

    name: str
    default: Any
    kind: Any
    metadata: Sequence[Any]

    @property
    def is_positional(self) -> bool:
        """Whether it is a plain word."""
        return Positional in self.metadata

    @property
    def flags(self) -> list[str]:
        """Its flag, and the one that turns it off if there is one."""
        flags = [flag_name(f"--{self.name}")]
        # tyro's flags of a bool have a second spelling unless they can only turn it on.
        if isinstance(self.default, bool) and FlagCreatePairsOff not in self.metadata:
            flags.append(flag_name(f"--no-{self.name}"))
        return flags

    def described(self, attribute: str) -> Any:
        """Return what `option` says of it, the last word where it says it twice; else ""."""
        values = [getattr(entry, attribute, None) for entry in reversed(self.metadata)]
        return next(filter(None, values), "")


def list_options(options: type[Any]) -> list[Option]:
    """Return the fields of a dataclass as options."""
    hints, entries = get_type_hints(options, include_extras=True), []
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        metadata = getattr(hint, "__metadata__", ())
        kind = get_args(hint)[0] if metadata else hint
        entries.append(Option(field.name, field.default, kind, metadata))
    return entries


def flags_of(options: type[Any]) -> list[str]:
    """Return the flags of a dataclass."""
    return ["--help", *chain.from_iterable(option.flags for option in list_options(options))]


def flag_name(word: str) -> str:
    """Return the flag in a word such as `--limit_train=8`, as the help text spells it."""
    return word.partition("=")[0].replace("_", "-")


class UnknownFlag(UsageError):
    """A flag that the command does not have."""

    def __init__(self, flag: str, hint: str) -> None:
        super().__init__(f"unknown flag {flag}: {hint}")
        self.flag = flag


def unknown_flag(word: str, options: type[Any], help_command: str) -> UnknownFlag:
    """Return the error for a flag that a command does not have, with the nearest that it has."""
    flag = flag_name(word)
    nearest = difflib.get_close_matches(flag, flags_of(options), n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"{help_command} lists them"
    return UnknownFlag(flag, hint)
