"""`doctor --speed`: operations as counted by hand, a rate that is possible, a line a suite."""

from __future__ import annotations

import re

import pytest
import torch

from bench import datasets, models
from bench.cli.commands import doctor
from bench.execution import speed
from bench.protocol import suites


def test_operations_of_a_step() -> None:
    """Count ResNet-8 of width 4 on 8 x 8 scans: seven 3x3 convolutions, two 1x1, one product.

    A multiplication and an addition are two operations.
    """
    stem, first, second, third = (
        9 * 4 * 64,
        2 * 9 * 16 * 64,
        (9 * 32 + 9 * 64 + 32) * 16,
        (9 * 128 + 9 * 256 + 128) * 4,
    )
    forward = 2 * (stem + first + second + third + 160)
    net = models.build("resnet8-w4", datasets.DIGITS)
    assert speed.step_operations(net, net, datasets.DIGITS.shape, steps=5) == (1 + 10 + 6) * forward


@pytest.mark.parametrize("bf16", [True, False])
def test_a_line_for_each_suite(
    bf16: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "SECONDS_PER_SHAPE", 0.05)
    monkeypatch.setattr("bench.execution.speed.has_bf16", lambda device: bf16)
    monkeypatch.setattr(
        suites, "SUITES", {"digits": suites.DIGITS, "cifar-mini": suites.CIFAR_MINI}
    )
    assert doctor.diagnose(doctor.DoctorOptions(speed=True, device="cpu")) == 0
    output = capsys.readouterr().out
    ceiling = re.search(r"convolutions +([\d,]+) GFLOP/s in single precision", output)
    assert ceiling
    assert float(ceiling[1].replace(",", "")) > 1
    assert bool(re.search(r"single precision, [\d,]+ with --precision bf16\n", output)) == bf16
    for name, student in (("digits", "resnet8-w4"), ("cifar-mini", "resnet8-w16-s2")):
        rate = re.search(
            rf"{name} +{student}: [\d.e+]+ images a second of RSLAD, (\d+) % of that; an epoch",
            output,
        )
        assert rate
        assert 0 < int(rate[1]) <= 120, "faster than the machine"


def test_the_ceiling_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS_PER_SHAPE", 0.1)
    rates = [speed.convolution_rate(torch.device("cpu")) for _ in range(3)]
    assert max(rates) < 3 * min(rates)
