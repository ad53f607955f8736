"""The student's loss around images, and its accuracy as an attack grows in size and steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.analysis.examples import PGD20, make_examples, subject_examples
from bench.analysis.findings import Findings
from bench.analysis.outputs import check_labels, collect_logits
from bench.analysis.subject import Subject
from leaderboards.schema.analysis import (
    BY_EPS,
    BY_STEPS,
    FEATURE_ATTACKS,
    LOSS_ATTACK,
    LOSS_RANDOM,
)
from methods.base import Net

GROUP = "gradients"
# Radii, as shares of the suite's.
EPS_SHARES = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)
STEPS = (1, 2, 5, 10, 20, 50)
# From an image, 0, to its adversarial example, 1.
POSITIONS = tuple(i / 10 for i in range(11))
# Radii whose PGD-20 examples other measures need too.
SHARED = {share: name for name, share in FEATURE_ATTACKS.items() if name.startswith(PGD20)}
DIGITS = 6  # of losses and accuracies in lines

Line = list[tuple[float, float]]


def measure(subject: Subject) -> Findings:
    """Measure accuracy against eps and steps, and the loss along an attack and along noise."""
    findings = Findings()
    logits = collect_logits(subject.student, subject.x)
    check_labels(logits, subject.y)
    by_eps = [(float(share), robust_accuracy(subject, PGD20, share)) for share in EPS_SHARES]
    by_steps = [(float(steps), robust_accuracy(subject, f"pgd{steps}", 1)) for steps in STEPS]
    along_attack = loss_line(subject, subject_examples(subject))
    along_random = loss_line(subject, random_corners(subject))
    lines = {
        BY_EPS: by_eps,
        BY_STEPS: by_steps,
        LOSS_ATTACK: along_attack,
        LOSS_RANDOM: along_random,
    }
    for name, line in lines.items():
        findings.lines[name] = [(x, round(y, DIGITS)) for x, y in line]
    findings.add(along_attack[-1][1] - along_attack[0][1], GROUP, "attack_rise")
    findings.add(along_random[-1][1] - along_random[0][1], GROUP, "random_rise")
    findings.add(mean_height(by_eps), GROUP, "area")
    return findings


def robust_accuracy(subject: Subject, attack: str, share: float) -> float:
    """Return the share of images that are classified correctly, before and after an attack.

    share: of the suite's radius.
    """
    net, x, y = subject.student, subject.x, subject.y
    correct = is_correct(net, x, y)
    if attack == PGD20 and share in SHARED:
        adv = subject_examples(subject, name=SHARED[share])[correct]
    elif correct.any():
        rows = x[correct], y[correct]
        adv = make_examples(net, *rows, attack, subject.eps * share, subject.norm)
    if not correct.any():
        return 0.0
    return float(is_correct(net, adv, y[correct]).sum()) / len(y)


def is_correct(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """Return which images are classified correctly: (N,)."""
    return collect_logits(net, x).argmax(dim=1).to(y.device) == y


def loss_line(subject: Subject, end: Tensor) -> Line:
    """Return the mean cross-entropy on the way from the images to others: (position, loss)."""
    y, line = subject.y.cpu(), []
    for position in POSITIONS:
        logits = collect_logits(subject.student, subject.x + position * (end - subject.x))
        line.append((position, float(F.cross_entropy(logits, y))))
    return line


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
