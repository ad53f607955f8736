"""The command-line options, one dataclass a verb: defaults, types and help text in one place. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from bench.protocol.options import (
    CommonOptions,
    DataFolder,
    DryRun,
    Measured,
    Number,
    ProtocolOptions,
    RunOptions,
    Speed,
    StoreFolder,
)
from bench.tuning.options import TuneOptions


@dataclass(frozen=True, kw_only=True)
class Run(RunOptions):
    """Train students with one or more methods, evaluate them, record everything.

    What is already recorded is skipped, what was interrupted is resumed, teachers are trained on first use.
    """

    dry_run: DryRun = False


@dataclass(frozen=True, kw_only=True)
class Tune(TuneOptions):
    """Search a method's hyper-parameters, learning rate and weight decay on validation images, then test once.

    The same command continues a search, and joins it when given on another machine that shares the storage. The best
    configuration is written to STORE/tuned/ and trained anew, beside the default one, with the seeds of the suite.
    """

    dry_run: DryRun = False


@dataclass(frozen=True, kw_only=True)
class TeacherTrain(ProtocolOptions):
    """Train a suite's teacher now, as `run` does on first use."""

    role: Annotated[Literal["robust", "natural"], arg(help="which of the suite's teachers")] = (
        "robust"
    )


@dataclass(frozen=True, kw_only=True)
class TeacherImport(CommonOptions):
    """Take a checkpoint file as a teacher, once hash, keys and its accuracy on test images have been checked.

    Files of the authors, of RobustBench and of this project. A name that `teacher list` shows as a release brings model,
    data set, normalisation and the accuracy that is expected; any other name needs --arch and --dataset.
    """

    name: Positional[Annotated[str, arg(help="a release, or what `--teacher` shall call it")]]
    file: Positional[Annotated[Path, arg(help="the checkpoint")]]
    arch: Annotated[str, arg(metavar="MODEL", help="such as wrn34-10; see `list`")] = ""
    dataset: Annotated[str, arg(metavar="NAME", help="what it was trained on")] = ""
    sha256: Annotated[str, arg(metavar="HEX", help="refuse the file unless this is its hash")] = ""
    mean: Annotated[
        tuple[float, ...],
        arg(help="per channel, if the file holds none and does not take raw pixels"),
    ] = ()
    std: Annotated[tuple[float, ...], arg(help="as --mean")] = ()
    limit_test: Annotated[
        Measured, arg(help="measure it on the first N test images, 100 or more")
    ] = 1000


@dataclass(frozen=True, kw_only=True)
class TeacherList:
    """List the teachers at hand, and the releases that can be had."""

    store: StoreFolder = Path("runs")


@dataclass(frozen=True, kw_only=True)
class TeacherVerify(CommonOptions):
    """Check a teacher's file against its hash, measure clean accuracy and PGD-20, and write them on its card."""

    name: Positional[Annotated[str, arg(help="as `teacher list` shows it")]]
    suite: Annotated[
        str,
        arg(
            metavar="NAME",
            help="whose eps to use",
            help_behavior_hint="(default: the first with its data set)",
        ),
    ] = ""
    limit_test: Annotated[Measured, arg(help="use the first N test images")] = 1000


@dataclass(frozen=True, kw_only=True)
class Evaluate(CommonOptions):
    """Attack any checkpoint file. "corruptions" among the attacks adds noise, blur, contrast and JPEG as a control."""

    checkpoint: Annotated[Path, arg(metavar="FILE")]
    arch: Annotated[str, arg(metavar="MODEL", help="such as resnet18; see `list`")]
    dataset: Annotated[str, arg(metavar="NAME")]
    attacks: Annotated[
        str,
        arg(
            metavar="NAMES",
            help="with commas; see `list`",
            help_behavior_hint="(default: fgsm,pgd20,pgd20_trades,cw_inf,aa in Linf, pgd20,aa in L2)",
        ),
    ] = ""
    norm: Annotated[Literal["Linf", "L2"], arg(help="what the perturbation is measured in")] = (
        "Linf"
    )
    eps: Annotated[
        float | None,
        arg(
            metavar="X",
            help="radius, pixels in [0, 1]",
            help_behavior_hint="(default: that of the data set's suites in Linf, 0.5 in L2)",
        ),
    ] = None
    surrogate: Annotated[
        Path | None,
        arg(metavar="FILE", help="another checkpoint, on which NAME@surrogate makes its images"),
    ] = None
    surrogate_arch: Annotated[
        str, arg(metavar="MODEL", help="of the surrogate", help_behavior_hint="(default: --arch)")
    ] = ""
    limit_test: Annotated[Number, arg(help="use the first N test images")] = None
    batch_size: Annotated[int, arg(metavar="N", help="images attacked at once")] = 250
    seed: Annotated[int, arg(metavar="N", help="of the attacks' random numbers")] = 0
    sha256: Annotated[str, arg(metavar="HEX", help="refuse the file unless this is its hash")] = ""
    out: Annotated[
        Path | None,
        arg(metavar="FILE", help="per-image verdicts, an .npz; a second call continues it"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Write a site, to be opened from its index.html, and the tables as Markdown, LaTeX, JSON and CSV, from the record."""

    suite: Annotated[
        str, arg(metavar="NAME", help="one suite", help_behavior_hint="(default: all)")
    ] = ""
    out: Annotated[Path, arg(metavar="DIR")] = Path("leaderboard")
    figures: Annotated[
        FlagCreatePairsOff[bool], arg(help="figures for papers too, in DIR/figures; seconds a task")
    ] = False
    store: StoreFolder = Path("runs")
    records: Annotated[
        Path | None,
        arg(
            metavar="DIR",
            help="from record files, such as leaderboards/results, not from the store",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write finished runs as records, a small file each without tensors, for another checkout to import."""

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN", help="ids of MLflow runs")]] = ()
    suite: Annotated[
        str, arg(metavar="NAME", help="all finished runs of a suite, such as digits or digits@3")
    ] = ""
    out: Annotated[Path, arg(metavar="DIR", help="where to")] = Path("records")
    store: StoreFolder = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Import(CommonOptions):
    """Check records and take them into the store; one that is wrong is refused in a line, and the others go on.

    Another spec, suite version or checksum than it states, accuracies that its verdicts on single images do not give, and
    other numbers for a spec that is recorded already are refused.
    """

    sources: Positional[
        Annotated[tuple[Path, ...], arg(metavar="FILE-OR-DIR", help="records, or folders of them")]
    ]
    verify: Annotated[
        FlagCreatePairsOff[bool],
        arg(help="run the evaluation again on the checkpoint, and refuse other numbers"),
    ] = False
    checkpoint: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="for --verify",
            help_behavior_hint="(default: the one in the store with its sha256)",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Ui:
    """Open MLflow's own pages on the record, for this machine alone unless told otherwise; Ctrl-C ends it."""

    store: StoreFolder = Path("runs")
    host: Annotated[
        str, arg(metavar="NAME", help="0.0.0.0 lets other machines in, without a password")
    ] = "127.0.0.1"
    port: Annotated[int, arg(metavar="N")] = 5000


@dataclass(frozen=True, kw_only=True)
class List:
    """List methods, suites, data sets, models and attacks."""


@dataclass(frozen=True, kw_only=True)
class DataFetch:
    """Download a data set's official files."""

    name: Positional[str]
    data_root: DataFolder = Path("data")


@dataclass(frozen=True, kw_only=True)
class DataImport:
    """Take a data set's official files from a folder or a tar archive."""

    name: Positional[str]
    source: Positional[Path]
    data_root: DataFolder = Path("data")


@dataclass(frozen=True, kw_only=True)
class DataVerify:
    """Check a data set's files and print its counts and hash."""

    name: Positional[str]
    data_root: DataFolder = Path("data")


@dataclass(frozen=True, kw_only=True)
class Doctor(CommonOptions):
    """Report device, versions, a throughput probe, data sets and interrupted runs."""

    speed: Speed = False


@dataclass(frozen=True, kw_only=True)
class NewMethod:
    """Write the file of a new method and its test, which passes, to begin with."""

    name: Positional[Annotated[str, arg(help="what `--method` shall call it")]]
    out: Annotated[Path, arg(metavar="DIR", help="where to; methods/ of a clone needs no test")] = (
        Path(".")
    )


VERBS: dict[str, type[Any]] = {
    "run": Run,
    "tune": Tune,
    "evaluate": Evaluate,
    "teacher train": TeacherTrain,
    "teacher import": TeacherImport,
    "teacher list": TeacherList,
    "teacher verify": TeacherVerify,
    "leaderboard": Leaderboard,
    "export": Export,
    "import": Import,
    "ui": Ui,
    "list": List,
    "data fetch": DataFetch,
    "data import": DataImport,
    "data verify": DataVerify,
    "doctor": Doctor,
    "new-method": NewMethod,
}
