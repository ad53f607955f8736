"""A compiled network for a search, where what lies ahead takes longer than compiling."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attacks.folding import mixture_gradient

Network: TypeAlias = Callable[[Tensor], Tensor]
# Some two minutes of an H200 in TF32, several times what compiling takes.
MIN_OPERATIONS = 2e16
# Relative, in L2. Low precision flips single ReLUs; another function changes everything.
TOLERANCE = 0.2
# Networks of one class share what is compiled, up to so many variants.
RECOMPILE_LIMIT = 64


@torch.no_grad()
def count_operations(network: nn.Module, x: Tensor) -> float:
    """Return the FLOP of a forward pass of one image of x: (B, C, H, W)."""
    with FlopCounterMode(display=False) as counter:
        network(x[:1])
    return float(counter.get_total_flops())


def compile_network(network: nn.Module, x: Tensor) -> Network | None:
    """Compile a network, with its input gradient, for batches like x: (B, C, H, W).

    Return None, with a warning, if that fails or computes something else.
    """
    compiled = torch.compile(network, dynamic=False)
    try:
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            pairs = zip(_outputs(network, x), _outputs(compiled, x), strict=True)
            agrees = all(_is_close(written, other) for written, other in pairs)
    except torch.OutOfMemoryError:
        raise
    # A compiler fails in many ways.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    else:
        if agrees:
            return compiled
        reason = "compiled, it computes something else"
    warnings.warn(f"the search's network is not compiled, which is slower: {reason}", stacklevel=2)
    return None


def _outputs(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (B, K) and an input gradient: (B, C, H, W)."""
    with torch.no_grad():
        logits = network(x)
    gradient = mixture_gradient(network, x)
    return logits, torch.zeros_like(x) if gradient is None else gradient


def _is_close(expected: Tensor, value: Tensor) -> bool:
    # Written so that NaN is not close.
    return bool((expected - value).float().norm() <= TOLERANCE * expected.float().norm())
