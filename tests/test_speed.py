"""`doctor --speed`: operations as counted by hand, a rate that is possible, a line a suite."""

from __future__ import annotations

import json
import re
from pathlib import Path

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
    monkeypatch.setattr(speed, "SECONDS_PER_RATE", 0.05)
    monkeypatch.setattr("bench.execution.speed.has_bf16", lambda device: bf16)
    monkeypatch.setattr(
        doctor, "SUITES", {"digits": suites.DIGITS, "cifar-mini": suites.CIFAR_MINI}
    )
    doctor.diagnose(doctor.DoctorOptions(speed=True, device="cpu"))
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
    gains = re.findall(r"; with --precision bf16 ([\d.]+) times as fast", output)
    assert len(gains) == (2 if bf16 else 0)


@pytest.mark.parametrize(
    ("rates", "line"),
    [
        ({"fp32": 2.0}, "this device has no bf16: with --precision bf16 it trains in fp32"),
        (
            {"fp32": 2.0, "bf16": 5.0},
            "--precision bf16 pays here: convolutions 2.5 times as fast",
        ),
        (
            {"fp32": 2.0, "bf16": 1.0},
            "--precision bf16 does not pay here: convolutions 0.5 times as fast",
        ),
    ],
)
def test_the_precision_that_pays(rates: dict[str, float], line: str) -> None:
    assert speed.precision_advice(rates) == line


def test_the_ceiling_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SECONDS_PER_RATE", 0.1)
    rates = [speed.convolution_rate(torch.device("cpu")) for _ in range(3)]
    assert max(rates) < 3 * min(rates)


def test_a_slow_first_step_and_slow_windows_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is invented: a step takes 10 s at first, then 0.3 s, and 0.2 s at best."""
    clock = [0.0]
    durations = iter((10.0, 0.3, 0.3, 0.2, 0.3, 0.3))

    def step() -> None:
        clock[0] += next(durations)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert speed.best_rate(step, torch.device("cpu")) == pytest.approx(5.0)


def test_a_step_that_takes_seconds_is_not_repeated_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]

    def step() -> None:
        clock[0] += 3.0

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert speed.best_rate(step, torch.device("cpu")) == pytest.approx(1 / 3)
    assert clock[0] == 6.0


@pytest.mark.parametrize(("load", "lines"), [(0.2, 0), (3.0, 1)])
def test_a_busy_machine_is_named_in_a_line(
    load: float,
    lines: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As one document on standard output, and nothing else there."""
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(speed, "SECONDS_PER_RATE", 0.01)
    monkeypatch.setattr(doctor, "SUITES", {"digits": suites.DIGITS})
    monkeypatch.setattr("bench.execution.speed.has_bf16", lambda device: False)
    for measure in (False, True):
        options = doctor.DoctorOptions(device="cpu", store=tmp_path, json=True, speed=measure)
        doctor.diagnose(options)
        output = capsys.readouterr()
        assert output.err.count("warning: the machine is busy") == output.err.count("\n") == lines
        document = json.loads(output.out)
        assert document["speed"]["digits"]["images_per_second"] > 0
        assert len(document["warnings"]) == lines
        assert document["datasets"]["digits"]["ready"]
        assert document["store"] == {"uri": None, "unfinished": []}
