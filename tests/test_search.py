"""Attacks that see the network in bfloat16; verdicts are those of full precision."""

from __future__ import annotations

import pytest
import torch
from tasks import trained
from torch import Tensor, nn

from attacks import evaluate


class Watched(nn.Module):
    """A linear network that notes in what precision it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 2)
        self.seen: list[tuple[bool, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        self.seen.append((bool(x.requires_grad), logits.dtype))  # cannot be traced, so it stays what it is
        return logits

    def __deepcopy__(self, memo: dict[int, object]) -> Watched:
        return self  # one list for every copy


@pytest.mark.parametrize(("search", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_attacks_alone_see_it(search: str, dtype: torch.dtype) -> None:
    net = Watched().requires_grad_(False)
    x = torch.rand(8, 1, 8, 8)
    y = net(x).argmax(dim=1)
    evaluate(net, x, y, ("pgd20",), eps=0.01, search=search, probes=0)
    attacked = [kind for gradient, kind in net.seen if gradient]
    assert set(attacked[1:]) == {dtype}  # the first is of the view that is made
    assert {kind for gradient, kind in net.seen if not gradient} == {torch.float32}


@pytest.mark.parametrize("attack", ["fgsm", "apgd_ce", "square"])
def test_what_is_wrong_in_bfloat16_alone_stands(attack: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        net[1].weight.zero_()  # type: ignore[union-attr, operator]
        net[1].bias.copy_(torch.tensor([1.0, 1.001, 0.0]))  # type: ignore[union-attr, operator, arg-type]
    x, y = torch.rand(8, 1, 8, 8), torch.ones(8, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        assert (net(x).argmax(dim=1) == 0).all()
    assert evaluate(net, x, y, (attack,), eps=0.1, search="bf16", probes=0).robust[attack].all()


def test_it_finds_about_the_same() -> None:
    net, x, y = trained(10)
    full, half = (evaluate(net, x, y, ("aa",), eps=0.12, search=s, probes=0).robust["aa"] for s in ("fp32", "bf16"))
    assert 0 < full.sum() < len(x)
    assert (full != half).float().mean() <= 0.05


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="search 'fp8': fp32 or bf16"):
        evaluate(nn.Flatten(), torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.long), search="fp8")
