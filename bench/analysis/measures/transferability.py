"""Whose adversarial examples fool whom: every network on the examples of every other one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from bench.analysis.measures.findings import Findings
from bench.analysis.measures.outputs import is_correct
from methods.base import Net

GROUP = "transferability"


@dataclass(frozen=True)
class Exposure:
    """One network on the adversarial examples of others.

    accuracy: on all images, by the source of the examples. fooled: of the images that it classifies
    rightly without attack, the share that it gets wrong; 0 where there are none.
    """

    accuracy: dict[str, float]
    fooled: dict[str, float]


def expose(net: Net, x: Tensor, y: Tensor, examples: Mapping[str, Tensor]) -> Exposure:
    """Classify the adversarial examples of others.

    Args:
        net: the network that they may fool, in eval mode.
        x: images (N, C, H, W) in [0, 1].
        y: their classes (N,).
        examples: adversarial examples of them, (N, C, H, W), by the network they were made for.
    Raises:
        GapError: for logits that are not finite.
    """
    right = is_correct(net, x, y)
    accuracy, fooled = {}, {}
    for source, adv in examples.items():
        robust = is_correct(net, adv, y)
        accuracy[source] = robust.float().mean().item()
        lost = (right & ~robust).sum().item()
        fooled[source] = lost / max(int(right.sum()), 1)
    return Exposure(accuracy, fooled)


def summarise(
    name: str, teacher: str, exposures: Mapping[str, Exposure], teachers: Collection[str] = ()
) -> Findings:
    """Return the numbers of the student `name` among all networks.

    teacher: the name of its teacher among them, "" for none. teachers: those of all students. Each
    number is a mean over the other students, or about its teacher.
    """
    findings = Findings()
    others = [source for source in exposures if source not in (name, teacher, *teachers)]
    if others:
        resists = fmean(exposures[name].accuracy[source] for source in others)
        findings.add(resists, GROUP, "resists")
        findings.add(fmean(exposures[other].fooled[name] for other in others), GROUP, "fools")
    else:
        findings.gaps[GROUP] = "no other student of this suite, data set, model and seed"
    if teacher:
        findings.add(exposures[name].accuracy[teacher], GROUP, "resists_teacher")
        findings.add(exposures[teacher].fooled[name], GROUP, "fools_teacher")
    return findings
