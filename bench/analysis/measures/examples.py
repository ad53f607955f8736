"""Adversarial examples of a network, by the evaluation's own attacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attacks.attacked_model import AttackedModel
from attacks.build import Settings, build_attack
from attacks.catalog import ATTACKS, Attack
from attacks.isolation import isolated_state
from bench.analysis.measures.findings import Findings, GapError
from bench.analysis.measures.outputs import check_images, is_correct
from bench.analysis.measures.subject import Subject
from leaderboards.schema.analysis import ADVERSARIAL, CLEAN, FEATURE_ATTACKS
from methods.base import Net

# Whose examples the view ADVERSARIAL shows, and by which attack.
STUDENT, PGD20 = "student", "pgd20"


def make_examples(
    net: Net, x: Tensor, y: Tensor, attack: str, eps: float, norm: str, seed: int = 0
) -> Tensor:
    """Return an adversarial example for each of the images x: (N, C, H, W) with labels y: (N,).

    Images that are classified correctly come first, in the evaluation's batches, so theirs are the
    examples of `attacks.evaluate` with its exact search; then the others. The network and the
    random state are left as they are.

    Args:
        attack: "fgsm", or "pgd20" with any number of steps.
    Raises:
        GapError: for an attack that the norm does not have, labels that are no classes of the
            network, or a gradient that is not finite.
    """
    component, settings = attack_component(attack, norm), Settings(eps, norm, seed)
    check_images(x)
    adv = x.clone()
    with isolated_state(seed):
        model = AttackedModel(net, x[:2])
        correct = is_correct(model.reference_model, x, y)
        if not eps:
            return adv
        attacker = build_attack(component, model, settings)
        for rows in (correct.nonzero().flatten(), (~correct).nonzero().flatten()):
            for batch in torch.split(rows, settings.batch_size):
                adv[batch] = attack_batch(attacker, x[batch], y[batch], seed)
    if not adv.isfinite().all():
        raise GapError(f"{attack}: the network's gradient is not finite")
    return adv


def attack_batch(
    attacker: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, seed: int
) -> Tensor:
    """Return adversarial examples of one batch, each from the same seed."""
    if not len(x):
        return x
    with isolated_state(seed):
        return attacker(x, y).detach()


def attack_component(attack: str, norm: str) -> Attack:
    """Return the catalogue's attack; "pgd" with any number of steps is PGD-20 with as many."""
    name = attack if attack in ATTACKS else PGD20
    if norm not in ATTACKS[name].norms:
        raise GapError(f"{attack} is not defined in {norm}")
    (component,) = ATTACKS[name].components
    if name == attack:
        return component
    return replace(component, steps=int(attack.removeprefix("pgd")))


def subject_examples(subject: Subject, network: str = STUDENT, name: str = PGD20) -> Tensor:
    """Return the adversarial examples of a network for the subject's images, made once.

    Args:
        network: "student" or "teacher".
        name: of FEATURE_ATTACKS.
    """
    key = network, name
    if key not in subject.cached_examples:
        net = subject.student if network == STUDENT else subject.teacher
        if net is None:
            raise GapError("no teacher")
        eps = subject.eps * FEATURE_ATTACKS[name]
        attack = name.partition("-")[0]
        adv = make_examples(net, subject.x, subject.y, attack, eps, subject.norm)
        subject.cached_examples[key] = adv
    return subject.cached_examples[key]


def view_images(subject: Subject, findings: Findings, group: str) -> dict[str, Tensor]:
    """Return images by view: clean, and the student's adversarial ones unless they are a gap."""
    views = {CLEAN: subject.x}
    try:
        views[ADVERSARIAL] = subject_examples(subject)
    except GapError as error:
        findings.gaps[f"{group}/{ADVERSARIAL}"] = str(error)
    return views
