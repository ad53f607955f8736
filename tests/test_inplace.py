"""Networks whose ReLUs and sums overwrite: the same logits and gradients, and nothing overwritten that is read again."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from attacks.inplace import in_place


class Residual(nn.Module):
    """A convolution read once, one read twice, a sum, and every way to write a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.once(F.relu(x)))
        y = self.twice(x)
        return torch.relu(self.last(F.relu(y)) + y).mean(dim=(2, 3))


def gradient(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    logits = net(x)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]


def test_what_is_read_once_is_overwritten_and_nothing_changes() -> None:
    torch.manual_seed(0)
    plain = fx.symbolic_trace(Residual())
    net, x = in_place(copy.deepcopy(plain)), torch.randn(4, 3, 8, 8)
    before = x.clone()
    torch.testing.assert_close(gradient(net, x), gradient(plain, x), rtol=0, atol=0)
    assert torch.equal(x, before)
    assert isinstance(net, fx.GraphModule)
    overwriting = [str(n.args[0]) for n in net.graph.nodes if n.kwargs.get("inplace") or n.target is operator.iadd]
    assert overwriting == ["once", "last", "add"]  # neither the images nor what is read twice


def test_a_sum_that_grows_is_refused_when_it_is_run() -> None:
    """The view then attacks the network as it is: attacks/view.py compares logits first."""

    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + x

    with pytest.raises(RuntimeError, match="output with shape"):
        in_place(fx.symbolic_trace(Grows()))(torch.rand(2, 3, 4, 4))
