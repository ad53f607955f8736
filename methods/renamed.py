"""Old names that plugins may still use: the only place that knows them."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

MEMBERS = {"requires": "teacher_roles", "groups": "param_groups"}
RENAMED = {
    # Nets
    "clean": "teacher_logits",
    "at": "teacher_logits_at",
    # methods.base and methods.inner
    "official": "official_values",
    "scale": "kl_scale",
    "trust": "true_class_probability",
    "full": "at_least_float32",
    "images_alone": "frozen_parameters",
    "settled": "eval_logits",
}


def lookup_renamed(owner: object, name: str) -> Any:
    """Return the attribute of `owner` that was called `name`: a class's `__getattr__`."""
    if name not in RENAMED:
        where = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__name__
        raise AttributeError(f"{where} has no attribute {name!r}")
    return getattr(owner, RENAMED[name])


def module_getattr(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module with renamed functions."""
    return lambda name: lookup_renamed(sys.modules[module], name)


def add_renamed_members(method: type) -> None:
    """Give a method's class both names of what it defines or inherits from a mixin."""
    for pair in MEMBERS.items():
        # The first class that knows either name decides, as for any attribute.
        for owner in method.__mro__:
            defined = [name for name in pair if name in vars(owner)]
            if defined:
                break
        for name in set(pair).difference(defined):
            setattr(method, name, vars(owner)[defined[0]])
