"""Old names that plugins may still use: the only place that knows them."""

import sys
from collections.abc import Callable
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
        raise AttributeError(f"{owner!r} has no attribute {name!r}")
    return getattr(owner, RENAMED[name])


def module_getattr(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module with renamed functions."""
    return lambda name: lookup_renamed(sys.modules[module], name)


def add_renamed_members(method: type) -> None:
    """Give what a method's class defines both names, so that `super()` finds either one."""
    for old, new in MEMBERS.items():
        for source, alias in ((old, new), (new, old)):
            if source in vars(method) and alias not in vars(method):
                setattr(method, alias, vars(method)[source])
