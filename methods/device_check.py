"""Find tensors that a method makes on another device than its networks', without a device.

Networks and batch lie on torch's device `meta`, whose tensors have a shape and no values, while the
method takes a step. The first operation on tensors of several devices is the fault.
"""

import dataclasses
import itertools
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from methods.base import Batch, Method, Nets

DEVICE = "meta"
COPY = torch.ops.aten.copy_.default
READ = torch.ops.aten._local_scalar_dense.default
# Of a loop that waits for a value.
MAX_READS = 100
# Indices, their second argument, may lie on the CPU.
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
# In all other operations a tensor without dimensions on the CPU counts as a number.
JOINS = (torch.ops.aten.cat.default, torch.ops.aten.stack.default)


class SeveralDevicesError(Exception):
    """An operation gets tensors of these devices."""


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raise SeveralDevicesError for an operation on tensors of several devices.

    Every value that is read, with `.item()` or `if`, is 1.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = itertools.repeat(1, MAX_READS)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        values = tree_leaves((args, kwargs))
        if func in INDEXING:
            indices = [
                index for index in args[1] if index is not None and index.device.type != "cpu"
            ]
            values = tree_leaves((args[0], indices, args[2:], kwargs))
        tensors = (value for value in values if isinstance(value, Tensor))
        devices = {value.device.type for value in tensors if func in JOINS or not is_number(value)}
        if len(devices) > 1 and func is not COPY:
            raise SeveralDevicesError(*devices)
        if func is READ:
            return next(self.values)
        return func(*args, **(kwargs or {}))


def is_number(value: Tensor) -> bool:
    """Return whether operations on another device take this tensor as a number."""
    return value.dim() == 0 and value.device.type == "cpu"


def device_fault(case: Method, nets: Nets, batches: Sequence[Batch]) -> str:
    """Return file, line and device of a tensor that is not where the networks are, "" for none.

    Moves `nets`. A step is followed up to shapes that depend on values, as in `x[mask]`.
    """
    try:
        take_steps(case, nets, batches)
    except SeveralDevicesError as error:
        others = " and ".join(sorted({*error.args} - {DEVICE}))
        fault = f"tensors on {others} meet those on the networks' device"
        return f"{locate(case, error)}: {fault}: make them with device=batch.x.device"
    # Every other fault shows with values too.
    except Exception:
        return ""
    return ""


def take_steps(case: Method, nets: Nets, batches: Sequence[Batch]) -> None:
    """Take one step a batch without values; raise SeveralDevicesError."""
    nets.parts.to(DEVICE)
    for net in (nets.student, *nets.teachers.values()):
        net.to(DEVICE)
        # Merged layers ask for autocast's precision on their device, which `meta` has not.
        net.fold_batchnorm = False
    with FakeTensorMode(allow_non_fake_inputs=True), OneDevice(), autocast_anywhere():
        for batch in batches:
            tensors = {name: getattr(batch, name).to(DEVICE) for name in ("x", "y", "index")}
            moved = dataclasses.replace(batch, **tensors)
            terms = case.loss(nets, moved, case.attack(nets, moved))
            torch.stack(list(terms.values()))
            case.after_step(nets, moved)


@contextmanager
def autocast_anywhere() -> Iterator[None]:
    """Inside, `torch.autocast` takes any device. It has no effect on tensors without values."""
    enter = torch.autocast.__init__

    def enter_for_cpu(self: torch.autocast, device_type: str, *args: Any, **options: Any) -> None:
        enter(self, "cpu", *args, **options)

    with mock.patch.object(torch.autocast, "__init__", enter_for_cpu):
        yield


def locate(case: Method, error: Exception) -> str:
    """Return file and line of an error in the modules of the method's class, or of its loss."""
    classes = [kind for kind in type(case).__mro__ if kind not in Method.__mro__]
    files = {sys.modules[kind.__module__].__file__ for kind in classes}
    code = type(case).loss.__code__
    file, line = code.co_filename, code.co_firstlineno
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in files and frame.lineno:
            file, line = frame.filename, frame.lineno
    return f"{Path(file).name}:{line}"
