"""Small convolutions as matrices: the same function and the same gradient, and only where they are small."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.folding import MAX_MATRIX_ELEMENTS, DenseConvolution, unroll_convolutions
from attacks.attacked_model import AttackedModel
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
def test_a_matrix_does_what_its_convolution_does(conv: nn.Conv2d) -> None:
    torch.manual_seed(0)
    conv = conv.double().requires_grad_(False)
    x = (
        torch.rand(5, 3, 7, 6, dtype=torch.float64)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
    )
    want = conv(x)
    got = DenseConvolution(conv, x.shape[1:], want.shape[1:])(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    along = torch.rand_like(want)
    for one, other in zip(
        torch.autograd.grad(got, x, along), torch.autograd.grad(want, x, along), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Kept(nn.Module):
    """A large convolution, one that sees images of two shapes, and one of large images to a single value."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(1, 16, 3, padding=1)
        self.shared = nn.Conv2d(16, 16, 3, stride=8, padding=1)
        self.whole = nn.Conv2d(1, 1, 32)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.shared(self.shared(self.large(x))).mean(dim=(2, 3)) + self.whole(
            x
        ).flatten(1)
        return found


def test_large_convolutions_and_those_of_several_shapes_stay() -> None:
    assert 32 * 32 < MAX_MATRIX_ELEMENTS < (32 * 32) ** 2
    kept = unroll_convolutions(Kept(), torch.rand(2, 1, 32, 32))
    assert not [module for module in kept.modules() if isinstance(module, DenseConvolution)]


def test_an_attack_sees_matrices_and_the_judge_does_not() -> None:
    net = models.build("resnet8-w4", datasets.get("digits")).eval()
    x = torch.rand(9, 1, 8, 8)
    view = AttackedModel(net, x[:2])
    assert len([module for module in view.network.modules() if isinstance(module, DenseConvolution)]) == 9
    assert not [module for module in view.reference_model.modules() if isinstance(module, DenseConvolution)]
    torch.testing.assert_close(view(x), net(x), rtol=1e-4, atol=1e-5)
