"""BatchNorm folded into convolutions, for attacks in eval mode: exact up to rounding, and faster.

Modules inside the network are exchanged, not the network: it keeps its class, methods and hooks.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Names of a convolution and of the BatchNorm that alone reads it.
Pairs = list[tuple[str, str]]
# Tracing takes longer than a step, so the result is kept for the network's lifetime.
_pairs_by_network: WeakKeyDictionary[nn.Module, Pairs] = WeakKeyDictionary()


@contextmanager
def folded(net: nn.Module) -> Iterator[None]:
    """Inside, `net`, in eval mode, computes with folded copies of its weights."""
    replaced = fold(net)
    try:
        yield
    finally:
        for name, module in replaced.items():
            net.set_submodule(name, module)


@torch.no_grad()
def fold(net: nn.Module) -> dict[str, nn.Module]:
    """Fold `net`, in eval mode, for good, and return the modules that were replaced, by name."""
    # A compiler fuses BatchNorm itself. Networks that are no `Net` have no such field.
    if not getattr(net, "fold_batchnorm", True):
        return {}
    if net not in _pairs_by_network:
        _pairs_by_network[net] = find_foldable(net)
    replaced: dict[str, nn.Module] = {}
    for conv_name, norm_name in _pairs_by_network[net]:
        conv, norm = net.get_submodule(conv_name), net.get_submodule(norm_name)
        # The names are those of the first call: a network folded for good has no BatchNorm left.
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            replaced |= {conv_name: conv, norm_name: norm}
            net.set_submodule(conv_name, merge_layers(conv, norm))
            net.set_submodule(norm_name, nn.Identity().train(norm.training))
    return replaced


def find_foldable(net: nn.Module) -> Pairs:
    """Return what can be folded; nothing if the forward pass cannot be traced."""
    try:
        nodes = list(fx.symbolic_trace(net).graph.nodes)
    # A forward pass may raise any error when it gets a stand-in for its images.
    except Exception:
        return []
    modules = dict(net.named_modules())
    calls = [node.target for node in nodes if node.op == "call_module"]
    pairs = []
    for node in nodes:
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        source = node.args[0]
        if source.op != "call_module" or type(modules[source.target]) is not nn.Conv2d:
            continue
        called_once = calls.count(node.target) == calls.count(source.target) == 1
        if called_once and len(source.users) == 1:
            pairs.append((source.target, node.target))
    return pairs


def merge_layers(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that computes both, with the hooks of `conv`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    statistics = norm.running_mean, norm.running_var, norm.eps
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, norm.weight, norm.bias)
    # Faster, and safe without a gradient (bench/training/memory_layout.py).
    laid_out = weight.contiguous(memory_format=torch.channels_last)
    merged = copy.copy(conv)
    merged._parameters = {"weight": freeze(laid_out), "bias": freeze(bias)}
    return merged


def freeze(value: Tensor) -> nn.Parameter:
    """Return a parameter without gradient, in autocast's precision."""
    kind = value.device.type
    # Rounded once here, where autocast would do it at each step of an attack.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return nn.Parameter(value.detach().to(dtype), requires_grad=False)
