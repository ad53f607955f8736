"""Small convolutions as matrices: the same function and the same gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.attacked_model import AttackedModel
from attacks.folding import MAX_MATRIX_ELEMENTS, DenseConvolution, unroll_convolutions
from bench import datasets, models


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(3, 6, 1, stride=2, groups=3),
        nn.Conv2d(3, 4, (2, 3), dilation=2, padding="same", padding_mode="circular"),
    ],
)
def test_a_matrix_equals_its_convolution(conv: nn.Conv2d) -> None:
    torch.manual_seed(0)
    conv = conv.double().requires_grad_(False)
    x = (
        torch.rand(5, 3, 7, 6, dtype=torch.float64)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
    )
    expected = conv(x)
    output = DenseConvolution(conv, x.shape[1:], expected.shape[1:])(x)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.rand_like(expected)
    (gradient,) = torch.autograd.grad(output, x, cotangent)
    (expected_gradient,) = torch.autograd.grad(expected, x, cotangent)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


class NotUnrolled(nn.Module):
    """A large convolution, one of two image shapes, and one of a large image to a single value."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(1, 16, 3, padding=1)
        self.shared = nn.Conv2d(16, 16, 3, stride=8, padding=1)
        self.single = nn.Conv2d(1, 1, 32)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.shared(self.shared(self.large(x))).mean(dim=(2, 3))
        return pooled + self.single(x).flatten(1)


def test_large_and_shared_convolutions_are_not_unrolled() -> None:
    assert 32 * 32 < MAX_MATRIX_ELEMENTS < (32 * 32) ** 2
    net = unroll_convolutions(NotUnrolled(), torch.rand(2, 1, 32, 32))
    assert not [module for module in net.modules() if isinstance(module, DenseConvolution)]


def test_the_attacked_model_is_unrolled_and_the_reference_model_is_not() -> None:
    net = models.build("resnet8-w4", datasets.get("digits")).eval()
    x = torch.rand(9, 1, 8, 8)
    model = AttackedModel(net, x[:2])
    assert (
        len([module for module in model.network.modules() if isinstance(module, DenseConvolution)])
        == 9
    )
    assert not [
        module for module in model.reference_model.modules() if isinstance(module, DenseConvolution)
    ]
    torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-5)
