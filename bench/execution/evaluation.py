"""The evaluation of one checkpoint as its spec says: attacks, sanity flags, costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import attacks
from attacks.search.choice import choose_search
from attacks.verdict_file import ForeignVerdictsError
from bench.datasets.augmentation import to_float
from bench.datasets.splits import Split
from bench.protocol import suites
from bench.protocol.options import ProtocolOptions
from bench.system.errors import BenchError, UsageError, one_line
from bench.system.progress import Progress
from bench.training.memory_layout import keep_freed_memory
from bench.training.trainer import Tick
from leaderboards.schema import metrics
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.spec import Spec
from methods.base import Net

# How attacks go through images, and in which precision.
AttackSearch: TypeAlias = tuple[str, str]
# Test images for the sanity flags.
NUM_PROBES = 64


@dataclass(frozen=True)
class CheckpointEvaluation:
    """What was measured of one checkpoint.

    accuracy: by attack, with `clean` and `worst`. images, attacked: how many test images were
    judged, and how many under AutoAttack (0 without it). cost: by the names of metrics.
    predictions: (images,) classes of the clean images. survived: (attacked,) bool.
    """

    accuracy: dict[str, float]
    images: int
    attacked: int
    cost: dict[str, float]
    flags: dict[str, str]
    predictions: Tensor
    survived: Tensor | None = None

    def metrics(self, checkpoint: str) -> dict[str, float]:
        """Return accuracies and counts by the names of a checkpoint's metrics."""
        values = {"n": float(self.images), **self.accuracy}
        if self.attacked:
            values["aa_n"] = float(self.attacked)
        return {metrics.accuracy_name(name, checkpoint): value for name, value in values.items()}


def count_attacked(spec: Spec, checkpoint: str, images: int) -> int:
    """Return how many of the first test images AutoAttack sees of a checkpoint, 0 without it.

    `limit_aa` at most, and of a checkpoint other than best suites.LIMIT_AA_OTHERS at most.
    """
    if "aa" not in spec.attacks or checkpoint not in spec.full_checkpoints:
        return 0
    most = images if checkpoint == BEST else suites.LIMIT_AA_OTHERS
    return min(most, spec.limit_aa or images, images)


def evaluate_checkpoint(
    net: Net,
    spec: Spec,
    checkpoint: str,
    test: Split,
    verdicts: Path,
    tick: Tick,
    search: AttackSearch = ("auto", "auto"),
) -> CheckpointEvaluation:
    """Attack a network on the test images.

    Args:
        net: the network, in eval mode on its device.
        spec: names attacks, norm, eps, the number of images for AutoAttack, and the checkpoints
            that get it and the sanity flags.
        checkpoint: its name.
        test: the test images.
        verdicts: the path, without suffix, of the files that keep verdicts on single images.
        tick: receives the progress of each attack.
        search: how attacks go through the images, and in which precision (attacks.evaluate).
    """
    device = next(net.parameters()).device
    x, y = to_float(test.x).to(device), test.y.to(device)
    start = time.perf_counter()
    attack = partial(run_attacks, net, spec=spec, tick=tick, search=search)
    names = [name for name in spec.attacks if name != "aa"]
    probes = NUM_PROBES if checkpoint in spec.full_checkpoints else 0
    by_gradients = attack(x, y, names, path=verdicts.with_suffix(".npz"), probes=probes)
    autoattack = None
    if count := count_attacked(spec, checkpoint, len(x)):
        path = verdicts.with_name(f"{verdicts.name}_aa.npz")
        autoattack = attack(x[:count], y[:count], ["aa"], path=path)
    return summarise_attacks(by_gradients, autoattack, time.perf_counter() - start)


def summarise_attacks(
    by_gradients: attacks.Evaluation, autoattack: attacks.Evaluation | None, seconds: float
) -> CheckpointEvaluation:
    """Summarise what attacks found on all images, and AutoAttack, if any, on the first ones.

    `worst` is over the images that saw every attack.
    """
    predictions = by_gradients.predictions
    assert predictions is not None
    results, worst, flags = [by_gradients], by_gradients.worst, by_gradients.flags
    accuracy, attacked, survived = by_gradients.accuracy(), 0, None
    if autoattack:
        results.append(autoattack)
        survived = autoattack.robust["aa"]
        attacked = len(survived)
        combined = by_gradients.first_images(attacked) | autoattack
        worst, flags = combined.worst, flags | combined.contradictions()
        accuracy["aa"] = autoattack.accuracy()["aa"]
    accuracy["worst"] = worst.float().mean().item()
    cost = {metrics.EVAL_SECONDS: seconds} | sum_costs(results)
    return CheckpointEvaluation(
        accuracy, len(predictions), attacked, cost, flags, predictions, survived
    )


def choose_attack_search(options: ProtocolOptions, device: torch.device) -> AttackSearch:
    """Return search and precision of the attacks. Raise UsageError where they do not fit."""
    try:
        return choose_search(options.search, options.search_precision, device)
    except ValueError as error:
        flags = f"--search {options.search} --search-precision {options.search_precision}"
        raise UsageError(f"{flags}: {error}") from error


def sum_costs(results: list[attacks.Evaluation]) -> dict[str, float]:
    """Return passes of all attacks, and the seconds of each."""
    forwards = backwards = 0
    seconds = {}
    for result in results:
        for name, cost in result.cost.items():
            forwards += cost.forwards
            backwards += cost.backwards
            seconds[metrics.attack_seconds(name)] = cost.seconds
    passes = {metrics.EVAL_FORWARDS: forwards, metrics.EVAL_BACKWARDS: backwards}
    return {name: float(value) for name, value in passes.items()} | seconds


def run_attacks(
    net: Net,
    x: Tensor,
    y: Tensor,
    names: list[str],
    spec: Spec,
    path: Path,
    tick: Tick,
    search: AttackSearch,
    probes: int = 0,
) -> attacks.Evaluation:
    """Attack images and keep the verdicts in a file, or continue what is in it."""
    kind, precision = search
    evaluate = partial(
        attacks.evaluate, net, x, y, names, eps=spec.eps, norm=spec.norm, search=kind,
        precision=precision, probes=probes, record=path, progress=tick,
    )  # fmt: skip
    try:
        return evaluate()
    except ForeignVerdictsError:
        # An earlier version of the attacks wrote it.
        path.unlink()
        return evaluate()


def attack_test_images(
    net: nn.Module,
    test: Split,
    names: Sequence[str],
    device: torch.device,
    out: Path | None = None,
    **settings: Any,
) -> attacks.Evaluation:
    """Attack a network on a test split as `attack_images` does."""
    x, y = to_float(test.x).to(device), test.y.to(device)
    return attack_images(net, x, y, names, out, **settings)


def attack_images(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    names: Sequence[str],
    out: Path | None = None,
    **settings: Any,
) -> attacks.Evaluation:
    """Attack a network on images in [0, 1], with its progress logged.

    `out` takes the verdicts on single images, `settings` are arguments of `attacks.evaluate`.
    """
    if x.device.type == "cpu":
        keep_freed_memory()
    try:
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
        with Progress({1: (0.0, 0.0)}, 1) as progress:
            progress.start(1, "evaluate")
            tick = progress.tick
            return attacks.evaluate(net, x, y, names, record=out, progress=tick, **settings)
    except ValueError as error:
        # The network's own code may raise it too.
        raise UsageError(one_line(error, limit=1000)) from error
    except OSError as error:
        raise BenchError(f"cannot write {str(out)!r}: {error.strerror}") from error
