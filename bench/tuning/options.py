"""The options of a search. No Optuna here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from bench.protocol.options import (
    OF_SUITE,
    Number,
    ProtocolOptions,
    Students,
    Switch,
    Teacher,
    option,
)


@dataclass(frozen=True, kw_only=True)
class TuneOptions(ProtocolOptions):
    """The search, its budget, and how the best is tested."""

    method: Annotated[
        str, option("NAMES", "one method, several with commas, or all: the same budget for each")
    ]
    trials: Annotated[int, option("N", "the budget of each method")] = 30
    student: Students = ""
    teacher: Teacher = "robust"
    epochs: Annotated[Number, option("N", "of a trial", OF_SUITE)] = None
    objectives: Annotated[
        Literal["robust", "clean,robust"],
        option(
            "robust|clean,robust",
            "PGD accuracy with a floor on the clean one, or the Pareto front of both, unpruned",
        ),
    ] = "robust"
    min_clean: Annotated[
        float | None,
        option(
            "X",
            "clean accuracy on the validation images that a configuration must keep",
            "the suite's robust teacher's, less 0.1",
        ),
    ] = None
    sampler: Annotated[
        Literal["tpe", "gp", "nsga2", "random"],
        option(
            text="gp for few expensive trials, nsga2 for many cheap ones, random as the control"
        ),
    ] = "tpe"
    pruner: Annotated[
        Literal["halving", "hyperband", "none"], option(text="what stops a trial early")
    ] = "halving"
    range: Annotated[
        tuple[str, ...],
        option(
            "NAME=LOW:HIGH",
            "another range, also NAME=LOW:HIGH:log, NAME=A,B,C or, fixed, NAME=VALUE",
            "the methods' own",
        ),
    ] = ()
    storage: Annotated[
        str,
        option(
            "URL",
            "sqlite:///FILE, or postgresql://... for several machines",
            "sqlite:///STORE/tuning.db",
        ),
    ] = ""
    search_seed: Annotated[int, option("N", "of the trials' training and of the sampler")] = 1000
    seeds: Annotated[str, option("LIST", "of the final runs, such as 0,1,2", OF_SUITE)] = ""
    search_only: Annotated[Switch, option(text="leave the final runs and the test set alone")] = (
        False
    )
