"""Search spaces: a method's hyper-parameters and the suite's learning rate and weight decay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import Trial

from bench.protocol.tuned_config import setting_fault
from bench.system.errors import UsageError, unknown_name
from bench.system.words import parse_real, parse_whole
from leaderboards.schema.spec import Training
from methods import base
from methods.base import Method

Interval = FloatDistribution | IntDistribution

# Searched on a logarithmic scale, from default / factor to default * factor.
TRAINING_FACTORS = {"lr": 4.0, "weight_decay": 5.0}


@dataclass(frozen=True)
class Parameter:
    """A value of a trial. Without a distribution it stays at its default."""

    name: str
    default: Any
    distribution: BaseDistribution | None

    def suggest(self, trial: Trial) -> Any:
        """Draw a trial's value."""
        match self.distribution:
            case FloatDistribution(low=low, high=high, log=log):
                return trial.suggest_float(self.name, low, high, log=log)
            case IntDistribution(low=low, high=high, log=log):
                return trial.suggest_int(self.name, low, high, log=log)
            case CategoricalDistribution(choices=choices):
                return trial.suggest_categorical(self.name, choices)
        return self.default

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The ends of an interval, or all choices, or the fixed value."""
        if isinstance(self.distribution, Interval):
            return (self.distribution.low, self.distribution.high)
        if isinstance(self.distribution, CategoricalDistribution):
            return self.distribution.choices
        return (self.default,)

    def contains(self, value: Any) -> bool:
        if isinstance(self.distribution, Interval):
            return bool(self.distribution.low <= value <= self.distribution.high)
        return value in self.extremes

    @property
    def label(self) -> str:
        """The range in words."""
        if isinstance(self.distribution, Interval):
            scale = ", logarithmic" if self.distribution.log else ""
            return f"{self.distribution.low:g} to {self.distribution.high:g}{scale}"
        return ", ".join(map(str, self.extremes)) if self.distribution else "not searched"

    @property
    def json(self) -> str:
        """The distribution or the fixed value, as text that tells two spaces apart."""
        return distribution_to_json(self.distribution) if self.distribution else repr(self.default)


@dataclass(frozen=True)
class SearchSpace:
    """The parameters of a method's trials under a suite."""

    method_class: type[Method]
    hyper: tuple[Parameter, ...]
    training: tuple[Parameter, ...]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (*self.hyper, *self.training)

    @property
    def searched(self) -> list[Parameter]:
        return [parameter for parameter in self.parameters if parameter.distribution]

    def suggest(self, trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw the hyper-parameters and training settings of a trial."""
        values = {parameter.name: parameter.suggest(trial) for parameter in self.parameters}
        return self.split(values)

    def split(self, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return values as hyper-parameters and training settings, completed with the defaults."""
        hyper, training = default_values(self.hyper), default_values(self.training)
        for name, value in values.items():
            group = hyper if name in hyper else training
            group[name] = value
        return hyper, training

    def first_trials(self) -> list[dict[str, Any]]:
        """Return the values to try first: the defaults, then the authors' inside the ranges."""
        defaults = default_values(self.searched)
        official = base.official_values(self.method_class)
        authors = defaults.copy()
        for parameter in self.searched:
            value = official.get(parameter.name, parameter.default)
            if parameter.contains(value):
                authors[parameter.name] = value
        return [defaults] if authors == defaults else [defaults, authors]

    def describe(self) -> dict[str, str]:
        """Return each parameter's range by name."""
        return {parameter.name: parameter.json for parameter in self.parameters}


def default_values(parameters: Iterable[Parameter]) -> dict[str, Any]:
    """Return the default of each parameter by name."""
    return {parameter.name: parameter.default for parameter in parameters}


def build_space(
    method_class: type[Method], training: Training, ranges: tuple[str, ...] = ()
) -> SearchSpace:
    """Build the search space of a method; `ranges`, such as "alpha=0.5:1", replace declared ones.

    Ranges of other methods' parameters are left aside. Raises UsageError for an unreadable one.
    """
    texts = dict(split_range(text) for text in ranges)
    if len(texts) < len(ranges):
        raise UsageError(f"--range {' '.join(ranges)}: each parameter once")
    hyper, settings = dict[str, Parameter](), dict[str, Parameter]()
    for field in dataclasses.fields(method_class):
        if not field.metadata["quirk"]:
            hyper[field.name] = with_range(declared_parameter(field), texts.get(field.name))
    for name in TRAINING_FACTORS:
        if name not in hyper:
            setting = training_parameter(name, getattr(training, name))
            settings[name] = with_range(setting, texts.get(name))
    return SearchSpace(method_class, (*hyper.values(),), (*settings.values(),))


def check_ranges(spaces: dict[str, SearchSpace], ranges: tuple[str, ...]) -> None:
    """Raise UsageError for a parameter that no method has, or an end that one cannot take."""
    names = set[str]()
    for space in spaces.values():
        names.update(space.describe())
    for text in ranges:
        name, _ = split_range(text)
        if name not in names:
            raise unknown_name("parameter", name, names)
    for method, space in spaces.items():
        try:
            check_extremes(space)
        except ValueError as error:
            raise UsageError(f"--range: {method}: {error}") from error


def check_extremes(space: SearchSpace) -> None:
    """Raise ValueError if the method or the training cannot take an end of a range."""
    defaults = default_values(space.hyper)
    for parameter in space.hyper:
        for value in parameter.extremes:
            space.method_class(**defaults | {parameter.name: value})
    for parameter in space.training:
        for value in parameter.extremes:
            if fault := setting_fault(parameter.name, value):
                raise ValueError(fault)


def declared_parameter(field: dataclasses.Field[Any]) -> Parameter:
    """Return a hyper-parameter with its declared range, widened to hold its default."""
    search, default = field.metadata["search"], cast(Any, field.default)
    if isinstance(default, bool):
        return Parameter(field.name, default, CategoricalDistribution((False, True)))
    if search["choices"]:
        return Parameter(field.name, default, CategoricalDistribution(search["choices"]))
    if isinstance(default, str) or search["high"] is None:
        return Parameter(field.name, default, None)
    low, high = min(search["low"] or 0, default), max(search["high"], default)
    return Parameter(field.name, default, make_interval(type(default), low, high, search["log"]))


def training_parameter(name: str, default: float) -> Parameter:
    """Return a training setting, searched about its default; 0 stays 0."""
    if default == 0:
        return Parameter(name, default, None)
    factor = TRAINING_FACTORS[name]
    return Parameter(name, default, FloatDistribution(default / factor, default * factor, log=True))


def make_interval(kind: type[Any], low: float, high: float, log: bool) -> Interval:
    """Return an interval of whole numbers if `kind` is int, else of floats."""
    if kind is int:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def split_range(text: str) -> tuple[str, str]:
    """Split NAME=RANGE. Raises UsageError."""
    name, _, value = text.partition("=")
    if not name or not value:
        raise UsageError(
            f"--range {text!r}: write NAME=LOW:HIGH, NAME=LOW:HIGH:log, NAME=A,B,C or NAME=VALUE"
        )
    return name.replace("-", "_"), value


def with_range(parameter: Parameter, text: str | None) -> Parameter:
    """Return the parameter with the range LOW:HIGH, LOW:HIGH:log, A,B,C or VALUE, if there is one.

    The default moves into the range. Raises UsageError.
    """
    if text is None:
        return parameter
    name, default, kind = parameter.name, parameter.default, type(parameter.default)
    bounds = text.split(":")
    log = bounds[2:] == ["log"]
    try:
        if kind in (int, float) and (len(bounds) == 2 or log):
            low, high = parse_value(kind, bounds[0]), parse_value(kind, bounds[1])
            interval = make_interval(kind, low, high, log)
            return Parameter(name, min(max(default, low), high), interval)
        values = tuple(parse_value(kind, word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"--range {name}={text}: {error}") from error
    if default not in values:
        default = values[0]
    return Parameter(name, default, CategoricalDistribution(values) if len(values) > 1 else None)


def parse_value(kind: type[Any], word: str) -> Any:
    """Read a value of the parameter's type. Raises ValueError."""
    if kind is bool:
        if word.lower() not in ("true", "false"):
            raise ValueError(f"{word!r} is neither true nor false")
        return word.lower() == "true"
    if kind is str:
        return word
    return parse_whole(word) if kind is int else parse_real(word)
