"""What is searched: a method's own hyper-parameters and the suite's learning rate and weight decay."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any, cast

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import Trial

from bench.protocol.suites import Training
from bench.protocol.tuned_config import setting_fault
from bench.system.errors import UsageError, unknown_name
from methods import base
from methods.base import Method

# Searched on a logarithmic scale, from default / factor to default * factor.
TRAINING = {"lr": 4.0, "weight_decay": 5.0}


@dataclass(frozen=True)
class Parameter:
    """One value of a trial; with a distribution of None it is not searched but stays at its default."""

    name: str
    default: Any
    distribution: BaseDistribution | None

    def suggest(self, trial: Trial) -> Any:
        match self.distribution:
            case FloatDistribution() as found:
                return trial.suggest_float(self.name, found.low, found.high, log=found.log)
            case IntDistribution() as found:
                return trial.suggest_int(self.name, found.low, found.high, log=found.log)
            case CategoricalDistribution() as found:
                return trial.suggest_categorical(self.name, found.choices)
        return self.default

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        match self.distribution:
            case FloatDistribution() | IntDistribution() as found:
                return bool(found.low <= value <= found.high)
            case CategoricalDistribution() as found:
                return value in found.choices
        return bool(value == self.default)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The outermost values, or all choices."""
        match self.distribution:
            case FloatDistribution() | IntDistribution() as found:
                return (found.low, found.high)
            case CategoricalDistribution() as found:
                return tuple(found.choices)
        return (self.default,)

    @property
    def words(self) -> str:
        """The range for people."""
        match self.distribution:
            case FloatDistribution() | IntDistribution() as found:
                return f"{found.low:g} to {found.high:g}{', logarithmic' if found.log else ''}"
            case CategoricalDistribution() as found:
                return ", ".join(map(str, found.choices))
        return "not searched"


@dataclass(frozen=True)
class Space:
    """The parameters of a method's trials under a suite."""

    hyper: tuple[Parameter, ...]
    training: tuple[Parameter, ...]

    @property
    def searched(self) -> list[Parameter]:
        return [parameter for parameter in (*self.hyper, *self.training) if parameter.distribution]

    def suggest(self, trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        """Hyper-parameters and training settings of a trial."""
        hyper = {parameter.name: parameter.suggest(trial) for parameter in self.hyper}
        return hyper, {parameter.name: parameter.suggest(trial) for parameter in self.training}

    def split(self, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same for the searched values of a finished trial, the defaults beside them."""
        hyper, training = (
            {parameter.name: values.get(parameter.name, parameter.default) for parameter in group}
            for group in (self.hyper, self.training)
        )
        return hyper, training

    def first(self, form: type[Method]) -> list[dict[str, Any]]:
        """The searched values to try before any other: the harness's defaults, then those of the authors' script."""
        default = {parameter.name: parameter.default for parameter in self.searched}
        ranges = {parameter.name: parameter for parameter in self.searched}
        theirs = {
            name: value
            for name, value in base.official_values(form).items()
            if name in ranges and ranges[name].holds(value)
        }
        return [default] if default | theirs == default else [default, default | theirs]

    def describe(self) -> dict[str, str]:
        """Name -> distribution or fixed value, as text that tells two spaces apart."""
        return {
            parameter.name: distribution_to_json(parameter.distribution)
            if parameter.distribution
            else repr(parameter.default)
            for parameter in (*self.hyper, *self.training)
        }


def space(form: type[Method], training: Training, given: tuple[str, ...] = ()) -> Space:
    """The search space of a method under a suite's training; `given`: ranges such as "alpha=0.5:1".

    Those for parameters that it does not have are left aside (`check` tells). Raises UsageError for other bad ones.
    """
    hyper = [parameter(field) for field in dataclasses.fields(form) if not field.metadata["quirk"]]
    taken = {found.name for found in hyper}
    setting = [
        around(name, getattr(training, name), factor)
        for name, factor in TRAINING.items()
        if name not in taken
    ]
    ranges = dict(split(text) for text in given)
    if len(ranges) < len(given):
        raise UsageError(f"--range {' '.join(given)}: each parameter once")
    groups = (
        tuple(changed(found, ranges.get(found.name)) for found in group)
        for group in (hyper, setting)
    )
    return Space(*groups)


def check(forms: dict[str, type[Method]], spaces: dict[str, Space], given: tuple[str, ...]) -> None:
    """Raises UsageError for a range whose parameter none of the methods has, or whose ends one cannot take."""
    known = sorted(
        {found.name for each in spaces.values() for found in (*each.hyper, *each.training)}
    )
    for name, _ in map(split, given):
        if name not in known:
            raise unknown_name("parameter", name, known)
    for method, found in spaces.items():
        usual = {parameter.name: parameter.default for parameter in found.hyper}
        for parameter in (*found.hyper, *found.training):
            for value in parameter.ends:
                try:
                    if parameter in found.hyper:
                        forms[method](**usual | {parameter.name: value})
                    elif wrong := setting_fault(parameter.name, value):
                        raise ValueError(wrong)
                except ValueError as error:
                    raise UsageError(f"--range: {method}: {error}") from error


def parameter(field: dataclasses.Field[Any]) -> Parameter:
    """A hyper-parameter with its declared range, widened to hold its default."""
    search, default = field.metadata["search"], cast(Any, field.default)
    if isinstance(default, bool):
        return Parameter(field.name, default, CategoricalDistribution((False, True)))
    if search["choices"]:
        return Parameter(field.name, default, CategoricalDistribution(search["choices"]))
    if isinstance(default, str) or search["high"] is None:
        return Parameter(field.name, default, None)
    low, high = min(search["low"] or 0, default), max(search["high"], default)
    return Parameter(field.name, default, interval(default, low, high, search["log"]))


def around(name: str, default: float, factor: float) -> Parameter:
    """A setting of the training, searched about its default; 0 stays 0."""
    found = FloatDistribution(default / factor, default * factor, log=True) if default else None
    return Parameter(name, default, found)


def interval(default: Any, low: float, high: float, log: bool) -> BaseDistribution:
    if isinstance(default, int):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def split(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise UsageError(
            f"--range {text!r}: write NAME=LOW:HIGH, NAME=LOW:HIGH:log, NAME=A,B,C or NAME=VALUE"
        )
    return name.replace("-", "_"), value


def changed(found: Parameter, text: str | None) -> Parameter:
    """The parameter with the range that was given for it."""
    if text is None:
        return found
    kind: type[Any] = type(found.default)
    numeric, words = kind in (int, float), text.split(":")
    try:
        if numeric and len(words) in (2, 3) and words[2:] in ([], ["log"]):
            low, high = value(kind, words[0]), value(kind, words[1])
            return replace(
                found,
                default=min(max(found.default, low), high),
                distribution=interval(low, low, high, bool(words[2:])),
            )
        values = tuple(value(kind, word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"--range {found.name}={text}: {error}") from error
    if len(values) == 1:
        return Parameter(found.name, values[0], None)
    default = found.default if found.default in values else values[0]
    return Parameter(found.name, default, CategoricalDistribution(values))


def value(kind: type[Any], word: str) -> Any:
    """A value of the parameter's type. Raises ValueError."""
    if kind is bool:
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{word!r} is neither true nor false")
        return word.lower() == "true"
    found = kind(word)
    if kind is float and not math.isfinite(found):
        raise ValueError(f"{word} is not finite")
    return found
