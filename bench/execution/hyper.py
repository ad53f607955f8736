"""Methods from names and hyper-parameters that a person states."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import methods
from bench.system.errors import BenchError, UsageError, unknown_name
from methods import outside
from methods.base import Method, matches_type


def load_method(name: str) -> type[Method]:
    """Return a method's class. Raise UsageError for an unknown name."""
    try:
        return methods.load(name)
    except KeyError as error:
        raise unknown_name("method", name, [*methods.names(), "all"]) from error


def build_method(name: str, hyper: Mapping[str, Any] | None = None) -> Method:
    """Return a method with its hyper-parameters. Raise UsageError for values out of range."""
    method = load_method(name)
    try:
        with outside.contained():
            return method(**(hyper or {}))
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    # The code of a plugin may raise anything.
    except Exception as error:
        fault = methods.describe_error(error)
        raise BenchError(f"method {name!r} cannot be made: {fault}") from error


def check_hyper(name: str, hyper: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return hyper-parameters from a file, each of its type.

    Raise UsageError, which names the source, for one unknown or of a wrong type, and for a value
    out of range.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(load_method(name))}
    values = dict(hyper)
    for key, value in hyper.items():
        if key not in defaults:
            raise unknown_name(f"hyper-parameter of {name} in {source}", key, defaults)
        if not matches_type(value, defaults[key]):
            kind = type(defaults[key]).__name__
            raise UsageError(f"{source}: {key} = {value!r} should be a {kind}")
        # TOML has whole numbers too, of which another spec would follow.
        if isinstance(defaults[key], float):
            values[key] = float(value)
    build_method(name, values)
    return values
