"""The frozen view that attacks in eval mode have of a network: each BatchNorm folded into the convolution before it.

Folding is exact up to rounding and takes a good part of a small network's operations away. Modules inside the network
are exchanged and not the network itself, so it keeps its class, its methods and its hooks. Folded weights lie
channels-last, which is faster, and need no gradient, which makes that safe (see bench/acceleration.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Pairs = list[tuple[str, str]]  # names of a convolution and of the BatchNorm that alone reads it
exempt: WeakSet[nn.Module] = (
    WeakSet()
)  # networks that are left as they are: a compiler fuses BatchNorm itself
_known: WeakKeyDictionary[nn.Module, Pairs] = WeakKeyDictionary()


@contextmanager
def folded(net: nn.Module) -> Iterator[None]:
    """Inside, `net`, which must be in eval mode, computes with folded copies of its weights that need no gradient."""
    before = fold(net)
    try:
        yield
    finally:
        for name, module in before.items():
            net.set_submodule(name, module)


@torch.no_grad()
def fold(net: nn.Module) -> dict[str, nn.Module]:
    """Folds `net`, which must be in eval mode, for good; returns the modules that were exchanged, by name."""
    if net in exempt:
        return {}
    if net not in _known:
        _known[net] = pairs(net)
    before: dict[str, nn.Module] = {}
    for name, norm_name in _known[net]:
        conv, norm = net.get_submodule(name), net.get_submodule(norm_name)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            before |= {name: conv, norm_name: norm}
            net.set_submodule(name, merged(conv, norm))
            net.set_submodule(norm_name, nn.Identity().train(norm.training))
    return before


def pairs(net: nn.Module) -> Pairs:
    """What can be folded; nothing in a network whose forward pass cannot be traced."""
    try:
        nodes = list(fx.symbolic_trace(net).graph.nodes)
    except Exception:  # whatever a forward pass does with a stand-in for its images
        return []
    modules = dict(net.named_modules())
    calls = [node.target for node in nodes if node.op == "call_module"]
    found = []
    for node in nodes:
        norm = modules.get(node.target) if node.op == "call_module" else None
        if (
            not isinstance(norm, nn.BatchNorm2d)
            or norm.running_mean is None
            or calls.count(node.target) > 1
        ):
            continue
        source = node.args[0]
        alone = source.op == "call_module" and len(source.users) == calls.count(source.target) == 1
        if alone and type(modules[source.target]) is nn.Conv2d:
            found.append((source.target, node.target))
    return found


def merged(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution, with the hooks of `conv`, that computes both, in autocast's precision."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    both = copy.copy(conv)
    both._parameters = {
        "weight": frozen(weight.contiguous(memory_format=torch.channels_last)),
        "bias": frozen(bias),
    }
    return both


def frozen(value: Tensor) -> nn.Parameter:
    """Rounded once here, where autocast would do it at each step of an attack."""
    kind = value.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return nn.Parameter(value.detach().to(dtype), requires_grad=False)
