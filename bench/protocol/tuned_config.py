"""A tuned configuration as a small TOML file: `tune` writes it, `run --config` reads it.

No torch here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.protocol import suites
from bench.system.errors import UsageError
from bench.system.files import read_toml, save_file

# What a configuration may set of the training -> the largest value allowed.
TRAINING = {"lr": 100.0, "momentum": 1.0, "weight_decay": 1.0}
NAMES = ("method", "suite", "dataset", "student", "teacher")
TABLES = ("hyper", "training", "provenance")


@dataclass(frozen=True)
class TunedConfig:
    """A run, the values of its best trial, and their provenance."""

    method: str
    suite: str  # name@version
    dataset: str
    student: str
    teacher: str
    hyper: dict[str, Any]
    training: dict[str, float]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        """How many trials the search took."""
        return int(self.provenance.get("trials", 0))

    @property
    def values(self) -> dict[str, Any]:
        """The hyper-parameters and the settings of the training."""
        return self.training | self.hyper

    @property
    def flags(self) -> dict[str, Any]:
        """The options of `run` that the file stands for."""
        options = {name: getattr(self, name) for name in NAMES if name != "suite"}
        options |= {"tuned": self.trials, **self.values}
        suite = self.suite.partition("@")[0]
        # A suite of a file has to be named beside the configuration.
        return options | {"suite": suite} if suite in suites.REGISTRY.names() else options


def values_digest(hyper: dict[str, Any], training: dict[str, float]) -> str:
    """Return four hex digits, the same for the same values alone."""
    text = json.dumps([hyper, training], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:4]


def write(path: Path, config: TunedConfig) -> None:
    """Write a configuration. Raise BenchError where that fails."""
    import tomli_w

    save_file(path, tomli_w.dumps(dataclasses.asdict(config)).encode())


def read(path: Path) -> TunedConfig:
    """Read a configuration. Raise UsageError for none, or one for another version of its suite."""
    flag = f"--config {str(path)!r}"
    try:
        config = TunedConfig(**read_toml(path))
    except OSError as error:
        raise UsageError(f"{flag}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{flag} is no TOML file: {error}") from error
    except TypeError as error:
        message = str(error).removeprefix("TunedConfig.__init__() ")
        raise UsageError(f"{flag} is no configuration: {message}") from error
    fault = config_fault(config)
    if fault:
        raise UsageError(f"{flag}: {fault}")
    # TOML has whole numbers too, of which another spec would follow.
    training = {name: float(value) for name, value in config.training.items()}
    return dataclasses.replace(config, training=training)


def config_fault(config: TunedConfig) -> str:
    """Return what is wrong with a configuration, "" if nothing is."""
    for name in NAMES:
        value = getattr(config, name)
        if not isinstance(value, str) or not value:
            return f"{name} = {value!r} is no name"
    for name in TABLES:
        if not isinstance(getattr(config, name), dict):
            return "hyper, training and provenance are tables"
    name = config.suite.partition("@")[0]
    if name in suites.REGISTRY.names() and (identity := suites.get(name).id) != config.suite:
        return f"found under {config.suite}, and this is {identity}: tune again"
    for name, value in config.training.items():
        if name not in TRAINING:
            return f"training.{name}: choose from {', '.join(TRAINING)}"
        fault = setting_fault(name, value)
        if fault:
            return f"training.{fault}"
    trials = config.provenance.get("trials", 1)
    if type(trials) is not int or trials < 1:
        return f"provenance.trials = {trials!r}: a whole number, 1 or more"
    return ""


def setting_fault(name: str, value: Any) -> str:
    """Return what is wrong with a value of a setting in TRAINING, "" if nothing is."""
    largest = TRAINING[name]
    lower_bound = "more than 0 and" if name == "lr" else "not negative and"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= largest or (name == "lr" and value == 0):
        return f"{name} = {value!r}: {lower_bound} at most {largest:g}"
    return ""
