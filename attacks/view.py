"""What an attack sees of a model: a private, frozen, counted copy. The model itself is never touched."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

FOLD_TOLERANCE = 1e-4  # relative to the largest logit


def frozen(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters take no gradient."""
    return copy.deepcopy(model).eval().requires_grad_(False)


class View(nn.Module):
    """A frozen copy with BatchNorm folded where that can be traced; counts the images that pass through.

    Returns fresh float32 logits: some attacks write into what the model returns.
    """

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        super().__init__()
        self.forwards = 0
        self.backwards = 0
        self.net = _folded(frozen(model), sample)
        self.anchor = nn.Parameter(torch.empty(0, device=sample.device), requires_grad=False)  # torchattacks reads it

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.net(x).float()
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits.clone()

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def _folded(model: nn.Module, sample: Tensor) -> nn.Module:
    """Convolutions with BatchNorm folded in, channels last; the model as it is where that changes its logits."""
    try:
        folded = fuse(model).to(memory_format=torch.channels_last)
        with torch.no_grad():
            want, got = model(sample), folded(sample)
    except Exception:  # tracing fails in many ways on models that are not plain graphs; folding is only for speed
        return model
    close = (want - got).abs().max() <= FOLD_TOLERANCE * want.abs().max()
    return folded if close else model
