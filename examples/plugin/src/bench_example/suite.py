"""The suite of the bars: the protocol of digits in fewer epochs, with smaller networks."""

from __future__ import annotations

from dataclasses import replace

from bench.protocol.suites import DIGITS, teacher_pair

TRAINING = replace(DIGITS.training, epochs=10)
SUITE = replace(
    DIGITS,
    name="bars",
    version=1,
    about="bars in four directions, a small student: a minute on a laptop",
    datasets=("bars",),
    students=("plainnet-w8",),
    teachers=teacher_pair("plainnet-w16", TRAINING),
    training=TRAINING,
    cpu_time="a minute",
)
