"""What surrounds every attack: a state of its own, whatever the caller's, which comes back untouched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch

backends: Any = torch.backends  # mypy sees less of it than there is
LOWERED = (  # what may run in TF32 or bfloat16
    backends.cuda.matmul,
    backends.cudnn.conv,
    backends.cudnn.rnn,
    backends.mkldnn.matmul,
    backends.mkldnn.conv,
    backends.mkldnn.rnn,
)


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Gradients on, full precision, random state of Python, NumPy and every device seeded inside and restored outside."""
    devices, states = range(torch.cuda.device_count()), (random.getstate(), np.random.get_state())
    dtype = torch.get_default_dtype()
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False) if devices else nullcontext(),
        full_precision(),
    ):
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_default_dtype(dtype)


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32, no bfloat16 in float32 products and convolutions.

    PyTorch keeps this twice, and its older getters raise where the two disagree: both are set, and both restored.
    """
    before = [place.fp32_precision for place in LOWERED]
    matmul = conv = None
    with suppress(RuntimeError):  # the caller has set the newer ones alone
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        conv = backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for place in LOWERED:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if conv is not None:
            backends.cudnn.allow_tf32 = conv
        for place, precision in zip(LOWERED, before, strict=True):
            place.fp32_precision = precision
