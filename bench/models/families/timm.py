"""Networks of timm, freshly initialised: https://github.com/huggingface/pytorch-image-models."""

from __future__ import annotations

import difflib
from contextlib import suppress
from typing import Any

from torch import nn

from bench.datasets import Dataset
from bench.system.errors import UsageError

NAMES = {
    r"timm:(?P<name>\w+)": "timm:<name>: a network of timm, untrained; of a vision transformer, "
    "smaller patches for images that are smaller than its own"
}
EXAMPLES = ("timm:resnet18", "timm:vit_tiny_patch16_224")
GRID = 8  # patches along a side of an image that is smaller than the network's own


def build(info: Dataset, name: str) -> nn.Module:
    """Build a network of timm for the size, the channels and the classes of a data set."""
    try:
        import timm
        from timm.layers.config import set_fused_attn
    except ModuleNotFoundError as error:
        need = f"{error.name}: pip install 'robust-distill-bench[timm]'"
        raise UsageError(f"it needs {need}") from error
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0)
        raise UsageError(f"timm has no such network: did you mean {nearest[0]!r}?")
    # torch's fused attention has no gradient of its gradient, which methods need.
    set_fused_attn(enable=False)
    facts: dict[str, Any] = {"num_classes": info.num_classes, "in_chans": info.shape[0]}
    config, side = timm.get_pretrained_cfg(name), min(info.shape[1:])
    sizes: dict[str, Any] = {"img_size": info.shape[1:]}
    patches = {"patch_size": max(1, side // GRID)} if config and side < config.input_size[1] else {}
    # Convolutional networks have no such options, some transformers have no size of patches.
    for options in (sizes | patches, sizes):
        with suppress(Exception):
            return timm.create_model(name, **facts, **options)
    return timm.create_model(name, **facts)
