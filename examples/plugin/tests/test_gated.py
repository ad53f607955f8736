"""The contract that every method keeps, and the effect of the gate."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from bench_example.gated import Gated

from methods.contract import Contract, images, networks, terms


class TestGated(Contract):
    cases = (Gated(), Gated(alpha=0.0), Gated(alpha=1.0))


@pytest.mark.parametrize("right", [True, False])
def test_the_teacher_counts_where_it_is_right(right: bool) -> None:
    case, batch = Gated(alpha=1.0), images([0] * 8)
    nets = networks(case)
    predicted = nets.teacher(batch.x).argmax(dim=1)
    batch = dataclasses.replace(batch, y=predicted if right else (predicted + 1) % 3)
    loss_terms = terms(case, nets, batch)
    assert (loss_terms["kl_adv"] > 0) == right
    assert (loss_terms["ce_adv"] == 0) == right


def test_without_the_teacher_it_is_adversarial_training() -> None:
    case, batch = Gated(alpha=0.0), images([0, 1, 2, 0])
    nets = networks(case)
    torch.manual_seed(0)
    adv = case.attack(nets, batch)
    expected = F.cross_entropy(nets.student(adv), batch.y)
    assert case.loss(nets, batch, adv)["ce_adv"].item() == pytest.approx(expected.item())
