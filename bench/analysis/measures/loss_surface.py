"""The student's loss around images, and its accuracy as an attack grows in size and steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.analysis.measures.examples import PGD20, make_examples, subject_examples
from bench.analysis.measures.findings import Findings, GapError
from bench.analysis.measures.outputs import collect_logits, is_correct
from bench.analysis.measures.subject import Subject
from leaderboards.schema.analysis import (
    BY_EPS,
    BY_STEPS,
    FEATURE_ATTACKS,
    LOSS_ATTACK,
    LOSS_RANDOM,
)

GROUP = "gradients"
# Radii, as shares of the suite's.
EPS_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
STEPS = (1, 2, 5, 10, 20, 50)
# From an image, 0, to its adversarial example, 1.
POSITIONS = tuple(i / 10 for i in range(11))
# Radii whose PGD-20 examples other measures need too.
SHARED = {share: name for name, share in FEATURE_ATTACKS.items() if name.startswith(PGD20)}

Line = list[tuple[float, float]]


def measure(subject: Subject) -> Findings:
    """Measure accuracy against eps and steps, and the loss along an attack and along noise."""
    findings = Findings()
    correct = is_correct(subject.student, subject.x, subject.y)
    add_loss_line(findings, subject, random_corners(subject), LOSS_RANDOM, "random_rise")
    try:
        add_loss_line(findings, subject, subject_examples(subject), LOSS_ATTACK, "attack_rise")
        by_eps = [(share, robust_accuracy(subject, correct, PGD20, share)) for share in EPS_SHARES]
        by_steps = [
            (float(steps), robust_accuracy(subject, correct, f"pgd{steps}", 1)) for steps in STEPS
        ]
    except GapError as error:
        findings.gaps[f"{GROUP}/attack"] = str(error)
        return findings
    findings.lines |= {BY_EPS: by_eps, BY_STEPS: by_steps}
    findings.add(mean_height(by_eps), GROUP, "area")
    return findings


def robust_accuracy(subject: Subject, correct: Tensor, attack: str, share: float) -> float:
    """Return the share of images that are classified correctly, before and after an attack.

    Args:
        correct: (N,), which images are before.
        share: of the suite's radius.
    """
    if not correct.any():
        return 0.0
    net, x, y = subject.student, subject.x[correct], subject.y[correct]
    if attack == PGD20 and share in SHARED:
        adv = subject_examples(subject, name=SHARED[share])[correct]
    else:
        adv = make_examples(net, x, y, attack, subject.eps * share, subject.norm)
    return float(is_correct(net, adv, y).sum()) / len(correct)


def add_loss_line(findings: Findings, subject: Subject, end: Tensor, name: str, rise: str) -> None:
    """Add the mean cross-entropy on the way from the images to others, and its rise.

    Args:
        end: the other images, (N, C, H, W).
        name, rise: of the line, of the measure.
    """
    y, line = subject.y.cpu(), []
    for position in POSITIONS:
        logits = collect_logits(subject.student, subject.x + position * (end - subject.x))
        line.append((position, float(F.cross_entropy(logits, y))))
    findings.lines[name] = line
    findings.add(line[-1][1] - line[0][1], GROUP, rise)


def random_corners(subject: Subject, seed: int = 0) -> Tensor:
    """Return a random corner of the l-inf ball around each image; in L2 a point of its surface.

    They are clipped to [0, 1], as adversarial examples are.
    """
    noise = torch.randn(subject.x.shape, generator=torch.Generator().manual_seed(seed))
    if subject.norm == "Linf":
        direction = noise.sign()
    else:
        direction = F.normalize(noise.flatten(1), dim=1).view_as(noise)
    return (subject.x + subject.eps * direction.to(subject.x)).clamp(0, 1)


def mean_height(line: Line) -> float:
    """Return the mean of a line over its range, by the trapezoidal rule."""
    x, y = torch.tensor(line, dtype=torch.float64).T
    return float(torch.trapezoid(y, x) / (x[-1] - x[0]))
