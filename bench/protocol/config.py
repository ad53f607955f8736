"""A tuned configuration as a small TOML file: written by `tune`, read by `run --config`. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.protocol import suites
from bench.system.errors import BenchError, UsageError
from bench.system.files import write_atomically

TRAINING = {
    "lr": 100.0,
    "momentum": 1.0,
    "weight_decay": 1.0,
}  # what a configuration may set -> the most that it may be
PLACE = ("method", "suite", "dataset", "student", "teacher")


@dataclass(frozen=True)
class Config:
    """What to run, the values that were found, and how they were found."""

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
        """How many trials it cost."""
        return int(self.provenance.get("trials", 0))

    @property
    def digest(self) -> str:
        """Four hex digits, the same for the same values alone."""
        return hashlib.sha256(
            json.dumps([self.hyper, self.training], sort_keys=True).encode()
        ).hexdigest()[:4]

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"tuned, {self.trials} trials, {self.digest}"

    @property
    def flags(self) -> dict[str, str]:
        """The options of `run` that the file stands for."""
        return {name: getattr(self, name) for name in PLACE} | {
            "suite": self.suite.partition("@")[0]
        }


def write(path: Path, config: Config) -> None:
    """Raises BenchError where it cannot be written."""
    import tomli_w

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, tomli_w.dumps(dataclasses.asdict(config)).encode())
    except OSError as error:
        raise BenchError(f"cannot write {str(path)!r}: {error.strerror}") from error


def read(path: Path) -> Config:
    """Raises UsageError for a file that is no configuration, or one for another version of its suite."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        config = Config(**content)
    except OSError as error:
        raise UsageError(f"--config {str(path)!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {str(path)!r} is no TOML file: {error}") from error
    except TypeError as error:
        said = str(error).removeprefix("Config.__init__() ")
        raise UsageError(f"--config {str(path)!r} is no configuration: {said}") from error
    if wrong := fault(config):
        raise UsageError(f"--config {str(path)!r}: {wrong}")
    return config


def fault(config: Config) -> str:
    """What is wrong with a configuration; "" if nothing is."""
    for name in PLACE:
        value = getattr(config, name)
        if not isinstance(value, str) or not value:
            return f"{name} = {value!r} is no name"
    if not all(
        isinstance(getattr(config, name), dict) for name in ("hyper", "training", "provenance")
    ):
        return "hyper, training and provenance are tables"
    suite = suites.get(config.suite.partition("@")[0])
    if suite.id != config.suite:
        return f"found under {config.suite}, and this is {suite.id}: tune again"
    for name, value in config.training.items():
        if name not in TRAINING:
            return f"training.{name}: choose from {', '.join(TRAINING)}"
        if wrong := setting_fault(name, value):
            return f"training.{wrong}"
    trials = config.provenance.get("trials", 1)
    return (
        ""
        if type(trials) is int and trials > 0
        else f"provenance.trials = {trials!r}: a whole number, 1 or more"
    )


def setting_fault(name: str, value: Any) -> str:
    """What is wrong with a value of a setting in TRAINING; "" if nothing is."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and 0 <= value <= TRAINING[name] and (value or name != "lr"):
        return ""
    return f"{name} = {value!r}: {'more than 0 and' if name == 'lr' else 'not negative and'} at most {TRAINING[name]:g}"
