"""How sure a teacher is of training images, and of those that stay unlearnable.

The diagnostic of Lee and Chung, "Why Robust Teachers Fail" (ICML 2026): the entropy of the
teacher on training images that a student does not learn. It is a measurement, no loss. The paper's
text could not be read: definition and attack are assumed here.

An image stays unlearnable if the teacher, as it is at the end of its training, gets its own
adversarial example of that training image wrong. This needs no student and stands in for the
paper's images, which a student is left with: what a larger network could not learn robustly, a
smaller one will hardly learn from it. In the same way the teacher's own adversarial examples stand
in for the student's, which fool the teacher less often.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.isolation import isolated_state
from bench.datasets.augmentation import to_float
from bench.datasets.splits import Split
from leaderboards.schema.fields import NORM_LABELS
from methods.adaptive import softmax_entropy
from methods.base import Net, true_class_probability
from methods.gacd import Gacd
from methods.iad import Iad
from methods.inner import Budget, ce, eval_logits, pgd
from methods.saad import Saad

BATCH = 250
STEPS = 10  # of a quarter of the radius: the usual attack of training
MAX_CLASSES = 20  # of which each has a line; of more the surest and the least sure ones have
EXTREMES = 5
HEADS = (
    *("class", "images", "right, %", "right attacked, %", "unlearnable"),
    *("entropy", "entropy attacked"),
)


@dataclass(frozen=True)
class TeacherOutputs:
    """Logits of a teacher on training images and on its own adversarial examples, on the CPU.

    y: (N,) classes, N > 0. nat, adv: (N, C).
    """

    y: Tensor
    nat: Tensor
    adv: Tensor

    @property
    def right(self) -> Tensor:
        """(N,) bool, without attack."""
        return self.nat.argmax(dim=1) == self.y

    @property
    def unlearnable(self) -> Tensor:
        """(N,) bool: the adversarial example is classified wrongly."""
        return self.adv.argmax(dim=1) != self.y


def collect_outputs(net: Net, train: Split, norm: str, eps: float) -> TeacherOutputs:
    """Attack a teacher, on its device, on training images from a fixed seed."""
    budget = Budget(eps, eps / 4, STEPS, norm)  # type: ignore[arg-type]
    device, nat, adv = net.mean.device, [], []
    with isolated_state(0):
        for rows in torch.split(torch.arange(len(train)), BATCH):
            x, y = to_float(train.x[rows].to(device)), train.y[rows].to(device)
            nat.append(eval_logits(net, x).cpu())
            adv.append(eval_logits(net, pgd(net, x, ce(y), budget)).cpu())
    return TeacherOutputs(train.y.cpu(), torch.cat(nat), torch.cat(adv))


def describe_attack(norm: str, eps: float) -> str:
    """Return the attack for people: "PGD-10, l-inf 0.03137"."""
    return f"PGD-{STEPS}, {NORM_LABELS[norm]} {eps:.4g}"


def report(outputs: TeacherOutputs, attack: str) -> Iterator[str]:
    """Yield lines: the training images, the unlearnable ones, classes, what methods make of it."""
    right, learnable = outputs.right, ~outputs.unlearnable
    nat, adv = softmax_entropy(outputs.nat), softmax_entropy(outputs.adv)
    most = math.log(outputs.nat.shape[1])
    yield (
        f"on {len(right):,} training images: right on {_percent(right)} % clean and on "
        f"{_percent(learnable)} % attacked ({attack}); entropy {nat.mean():.3f} clean and "
        f"{adv.mean():.3f} attacked, at most {most:.3f}"
    )
    yield _unlearnable_line(outputs, nat, adv)
    yield from class_lines(outputs)
    yield from method_lines(outputs)


def _unlearnable_line(outputs: TeacherOutputs, nat: Tensor, adv: Tensor) -> str:
    chosen = outputs.unlearnable
    count, rest = int(chosen.sum()), int((~chosen).sum())
    if not count:
        return "no image stays unlearnable: none is wrong when attacked"
    wrong = int((chosen & ~outputs.right).sum())
    line = (
        f"{count:,} stay unlearnable (wrong when attacked), {wrong:,} of them wrong without "
        f"attack too: entropy {nat[chosen].mean():.3f} clean and {adv[chosen].mean():.3f} attacked"
    )
    if not rest:
        return f"{line}; there are no others"
    return f"{line}; of the others {nat[~chosen].mean():.3f} and {adv[~chosen].mean():.3f}"


def class_lines(outputs: TeacherOutputs) -> list[str]:
    """Return a table of the classes that have images, the surest first."""
    nat, adv = softmax_entropy(outputs.nat), softmax_entropy(outputs.adv)
    rows = []
    for label in torch.bincount(outputs.y).nonzero().flatten().tolist():
        of = outputs.y == label
        unlearnable = outputs.unlearnable[of]
        shares = _percent(outputs.right[of]), _percent(~unlearnable)
        entropies = nat[of].mean().item(), adv[of].mean().item()
        rows.append((label, int(of.sum()), *shares, int(unlearnable.sum()), *entropies))
    rows.sort(key=lambda row: row[-1])
    lines = [_join(HEADS)]
    for row in rows if len(rows) <= MAX_CLASSES else rows[:EXTREMES] + rows[-EXTREMES:]:
        lines.append(_join((*map(str, row[:-2]), *map("{:.3f}".format, row[-2:]))))
    if len(rows) > MAX_CLASSES:
        lines.append(f"the {EXTREMES} surest and the {EXTREMES} least sure of {len(rows)} classes")
    return lines


def method_lines(outputs: TeacherOutputs) -> Iterator[str]:
    """Yield what the teacher means for each method that weighs images by its outputs.

    With the methods' defaults: gacd's weights before their scaling to mean 1, saad's without shift.
    """
    logits, y = outputs.adv, outputs.y
    gacd, iad = Gacd(), Iad()
    weights = gacd.sample_weights(logits, y)
    entropy, _ = Saad().entropy_weights(logits)
    trust = true_class_probability(logits, y) ** iad.beta
    yield f"gacd weighs by the true class's probability: {_compare(weights, outputs)}"
    yield f"saad weighs by the entropy: {_compare(entropy, outputs)}"
    yield (
        f"iad trusts the teacher by that probability to the power {iad.beta:g}: "
        f"{_compare(trust, outputs)}; the rest goes to the student's own prediction"
    )


def _compare(weights: Tensor, outputs: TeacherOutputs) -> str:
    """Return the mean weight of unlearnable images and of others, and its ratio."""
    chosen = outputs.unlearnable
    if chosen.all():
        return f"{weights.mean():.3f} on average, and every image is unlearnable"
    if not chosen.any():
        return f"{weights.mean():.3f} on average, and no image is unlearnable"
    unlearnable, others = weights[chosen].mean().item(), weights[~chosen].mean().item()
    text = f"{unlearnable:.3f} on unlearnable images, {others:.3f} on others"
    # A teacher that is certain of all others has an entropy of 0 there.
    return f"{text}, {unlearnable / others:.2f} times as much" if others else text


def _percent(flags: Tensor) -> str:
    return f"{100 * flags.float().mean().item():.1f}"


def _join(texts: tuple[str, ...]) -> str:
    return "  ".join(text.rjust(len(head)) for text, head in zip(texts, HEADS, strict=True))
