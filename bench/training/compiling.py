"""Compiled networks on a CUDA device. What cannot be compiled runs as written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bench.training.memory_layout import all_networks
from methods.base import Nets

# Training images over all epochs from which compiling, half a minute or more, is worth it.
MIN_IMAGES_TO_COMPILE = 500_000
# One class of networks is compiled once for each mode, gradient, shape and width.
RECOMPILE_LIMIT = 64
COMPILED = "compiled"


def compile_networks(nets: Nets, sample_loss: Callable[[], Tensor]) -> str:
    """Compile the features of all networks, unless the gradient of a sample loss fails with them.

    Args:
        nets: the networks of a training step.
        sample_loss: computes a loss as training does. It leaves no trace but in the state of the
            random number generator.

    Returns: the entry of the training path that says what was done.
    """
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    networks = all_networks(nets)
    for net in networks:
        compiled = torch.compile(type(net).features, dynamic=False)
        # Bound by hand: a deep copy of the network then gets a bound function of its own.
        vars(net)["features"] = functools.partial(compiled, net)
        # The compiler fuses BatchNorm itself.
        net.fold_batchnorm = False
    buffers = [*nets.student.buffers(), *nets.parts.buffers()]
    saved = [buffer.clone() for buffer in buffers]
    try:
        sample_loss().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        # A compiler fails in many ways; a gradient of gradients, for one, cannot be compiled.
        decompile_networks(nets)
        return f"not compiled ({type(error).__name__})"
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
        nets.student.zero_grad(set_to_none=True)
        nets.parts.zero_grad(set_to_none=True)
    return COMPILED


def decompile_networks(nets: Nets) -> None:
    """Let compiled networks run as written again."""
    for net in all_networks(nets):
        vars(net).pop("features")
        net.fold_batchnorm = True


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled networks as written inside the block, for batches of other sizes."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN try its algorithms on each new shape, which pays where shapes repeat."""
    saved = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = saved
