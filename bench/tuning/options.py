"""The options of a search. No Optuna here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, arg

from bench.protocol.options import Number, ProtocolOptions

SUITE_DEFAULT = "(default: the suite's)"


@dataclass(frozen=True, kw_only=True)
class TuneOptions(ProtocolOptions):
    """What to search, with which budget, and how the best is tested."""

    method: Annotated[
        str,
        arg(
            metavar="NAMES",
            help="one method, several with commas, or all: the same budget for each",
        ),
    ]
    trials: Annotated[int, arg(metavar="N", help="the budget of each method")] = 30
    student: Annotated[
        str, arg(metavar="NAMES", help="models, with commas", help_behavior_hint=SUITE_DEFAULT)
    ] = ""
    teacher: Annotated[str, arg(metavar="NAME", help="robust, natural or an imported teacher")] = (
        "robust"
    )
    epochs: Annotated[Number, arg(help="of a trial", help_behavior_hint=SUITE_DEFAULT)] = None
    objectives: Annotated[
        Literal["robust", "clean,robust"],
        arg(
            help="PGD accuracy with a floor on the clean one, or the Pareto front of both, unpruned"
        ),
    ] = "robust"
    min_clean: Annotated[
        float | None,
        arg(
            metavar="X",
            help="clean accuracy on the validation images that a configuration must keep",
            help_behavior_hint="(default: the suite's robust teacher's, less 0.1)",
        ),
    ] = None
    sampler: Annotated[
        Literal["tpe", "gp", "nsga2", "random"],
        arg(help="gp for few expensive trials, nsga2 for many cheap ones, random as the control"),
    ] = "tpe"
    pruner: Annotated[
        Literal["halving", "hyperband", "none"], arg(help="what stops a trial early")
    ] = "halving"
    range: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME=LOW:HIGH",
            help="another range, also NAME=LOW:HIGH:log, NAME=A,B,C or, fixed, NAME=VALUE",
        ),
    ] = ()
    storage: Annotated[
        str,
        arg(
            metavar="URL",
            help="sqlite:///FILE, or postgresql://... for several machines",
            help_behavior_hint="(default: sqlite:///STORE/tuning.db)",
        ),
    ] = ""
    search_seed: Annotated[
        int, arg(metavar="N", help="of the trials' training and of the sampler")
    ] = 1000
    seeds: Annotated[
        str,
        arg(
            metavar="LIST",
            help="of the final runs, such as 0,1,2",
            help_behavior_hint=SUITE_DEFAULT,
        ),
    ] = ""
    search_only: Annotated[
        FlagCreatePairsOff[bool], arg(help="leave the final runs and the test set alone")
    ] = False
