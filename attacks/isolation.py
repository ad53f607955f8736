"""Isolate attacks from the caller's random state, precision and gradient mode, and restore them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch

# mypy knows only some of its attributes.
backends: Any = torch.backends
# Operations that may run in TF32 or bfloat16.
LOW_PRECISION_BACKENDS = (
    backends.cuda.matmul,
    backends.cudnn.conv,
    backends.cudnn.rnn,
    backends.mkldnn.matmul,
    backends.mkldnn.conv,
    backends.mkldnn.rnn,
)


@contextmanager
def isolated_state(seed: int) -> Iterator[None]:
    """Turn gradients and full precision on and seed Python, NumPy and every device; restore all."""
    with default_state(), full_precision():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


@contextmanager
def default_state() -> Iterator[None]:
    """Turn gradients and float32 on and autocast off; restore them and all random numbers."""
    devices = range(torch.cuda.device_count())
    python_state, numpy_state = random.getstate(), np.random.get_state()
    dtype = torch.get_default_dtype()
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False) if devices else nullcontext(),
    ):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            torch.set_default_dtype(dtype)


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn off TF32 and bfloat16 in float32 products and convolutions; restore the settings."""
    # PyTorch has these settings twice, and the older getters raise where the two disagree. So
    # both are set, and both restored.
    before = [backend.fp32_precision for backend in LOW_PRECISION_BACKENDS]
    matmul_precision = allow_tf32 = None
    with suppress(RuntimeError):
        matmul_precision = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        allow_tf32 = backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for backend in LOW_PRECISION_BACKENDS:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        if matmul_precision is not None:
            torch.set_float32_matmul_precision(matmul_precision)
        if allow_tf32 is not None:
            backends.cudnn.allow_tf32 = allow_tf32
        for backend, precision in zip(LOW_PRECISION_BACKENDS, before, strict=True):
            backend.fp32_precision = precision
