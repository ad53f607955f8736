"""Networks of other packages, or of a file in the current folder, by the function that builds."""

from __future__ import annotations

import inspect
import os
import sys
from importlib import import_module
from typing import Any

from bench.datasets import Dataset

NAMES = {
    r"(?!timm:)(?P<module>[A-Za-z_][\w.]*):(?P<name>\w+)": "<package.module>:<function>: the "
    "network that a function returns; it gets num_classes if it takes that"
}
EXAMPLES = ("torchvision.models:resnet18",)


def build(info: Dataset, module: str, name: str) -> Any:
    """Call a function that returns a network."""
    # As for `python -m`; a script that pip installed has its own folder there.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    function = getattr(import_module(module), name)
    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if takes_any or "num_classes" in parameters:
        return function(num_classes=info.num_classes)
    return function()
