"""Folding: the same function, restored without a trace; some networks cannot be folded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bench import models
from bench.datasets import CIFAR10
from methods.fold import find_foldable, fold, folded
from methods.inner import Budget, ce, pgd

ARCHS = (
    "resnet8-w4",
    "resnet8-w4-s2",
    "resnet18-w4",
    "mobilenetv2",
    "wrn10-1",
    "preactresnet18-w4",
)


def trained_network(arch: str) -> nn.Module:
    """Return a network whose BatchNorm is not that of a new one."""
    torch.manual_seed(0)
    net = models.build(arch, CIFAR10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("arch", ARCHS)
def test_the_same_function_in_double_precision(arch: str) -> None:
    net, x = trained_network(arch).double(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert norms / 3 < len(find_foldable(net)) <= norms
    expected = net(x)
    with folded(net):
        torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(net.head(net.features(x)), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(net(x), expected)


def test_nothing_is_left_behind() -> None:
    net = trained_network("resnet8-w4")
    modules, state = dict(net.named_modules()), copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"channels|dimension|size"), folded(net):
        net(torch.rand(2, 5, 7))
    assert all(net.get_submodule(name) is module for name, module in modules.items())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_folded_weights_follow_the_network() -> None:
    net, x = trained_network("resnet8-w4"), torch.rand(2, 3, 32, 32)
    with folded(net):
        before = net(x)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(1.1)
    with folded(net):
        assert not torch.allclose(net(x), before)
        torch.testing.assert_close(net(x), copy.deepcopy(net)(x))


def test_hooks_and_gradients() -> None:
    net, x = trained_network("resnet8-w4"), torch.rand(2, 3, 32, 32, requires_grad=True)
    calls: list[int] = []
    net.get_submodule("conv1").register_forward_hook(lambda *_: calls.append(1))
    with folded(net):
        net(x).sum().backward()
    assert calls == [1]
    assert x.grad is not None
    assert {name for name, value in net.named_parameters() if value.grad is not None} <= {
        "linear.weight",
        "linear.bias",
    }


def test_for_good() -> None:
    net, x = trained_network("resnet8-w4").requires_grad_(False), torch.rand(2, 3, 32, 32)
    expected = net(x)
    assert fold(net)
    assert not fold(net)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


class Twice(nn.Module):
    """One convolution for two BatchNorms, and one read by two others."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.read = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.a, self.b, self.c = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.read(x)
        return self.a(self.shared(x)) + self.b(self.shared(y)) + self.c(y)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y if y.sum() > 0 else -y


@pytest.mark.parametrize("network", [Twice, Untraceable])
def test_networks_that_cannot_be_folded(network: type[nn.Module]) -> None:
    net, x = network().eval(), torch.rand(2, 3, 4, 4)
    assert find_foldable(net) == []
    with folded(net):
        assert torch.equal(net(x), net(x))


def test_a_network_that_must_not_be_folded() -> None:
    """The trainer says so of compiled networks; a copy is compiled too."""
    net = trained_network("resnet8-w4")
    net.fold_batchnorm = False
    assert not fold(net)
    assert not fold(copy.deepcopy(net))
    with folded(net):
        assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    net.fold_batchnorm = True
    assert fold(net)


@pytest.mark.parametrize("arch", ARCHS)
def test_attacks_give_the_same_examples(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, y = trained_network(arch).double(), torch.tensor([0, 1, 2])
    x = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    examples = []
    for folding in (True, False):
        if not folding:
            monkeypatch.setattr("methods.fold.find_foldable", lambda net: [])
            net = copy.deepcopy(net)
        torch.manual_seed(0)
        examples.append(pgd(net, x, ce(y), Budget(8 / 255, 2 / 255, 4)))
    assert torch.equal(*examples)
    assert not torch.equal(examples[0], x)
