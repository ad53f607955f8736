"""Names that plugins may still use: a plugin written for the old ones runs unchanged.

This is the only place that knows the old names. Nothing in this repository uses them.
"""

from __future__ import annotations

from typing import Any

# Old name -> new name, by the class or the module that has them.
RENAMED = {
    "Method": {"requires": "teacher_roles", "groups": "param_groups"},
    "Nets": {"clean": "teacher_logits", "at": "teacher_logits_at"},
    "methods.base": {
        "official": "official_values",
        "scale": "kl_scale",
        "trust": "true_class_probability",
    },
    "methods.inner": {
        "full": "at_least_float32",
        "images_alone": "frozen_parameters",
        "settled": "eval_logits",
    },
    "methods.contract": {
        "copied": "copy_state",
        "label": "case_label",
        "total": "total_loss",
        "values": "term_values",
    },
}


def lookup_renamed(owner: object, kind: str, name: str) -> Any:
    """Return the attribute of `owner` that was called `name`; the `__getattr__` of its kind."""
    if name not in RENAMED[kind]:
        raise AttributeError(f"{kind} has no attribute {name!r}")
    return getattr(owner, RENAMED[kind][name])


def add_renamed_members(method: type) -> None:
    """Give what a method's class defines both its old and its new name.

    Both, so that `super()` finds either name in every class on the way to the base.
    """
    for old, new in RENAMED["Method"].items():
        if old in vars(method) and new not in vars(method):
            setattr(method, new, vars(method)[old])
        elif new in vars(method) and old not in vars(method):
            setattr(method, old, vars(method)[new])
