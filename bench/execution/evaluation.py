"""The evaluation of one checkpoint as its spec says: attacks, sanity flags, costs."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from torch import Tensor

import attacks
from attacks.verdict_file import ForeignVerdictsError
from bench.datasets.augmentation import to_float
from bench.datasets.splits import Split
from bench.protocol.spec import Spec
from bench.training.trainer import Tick
from methods.base import Net

# Test images for the sanity flags.
NUM_PROBES = 64


def evaluate_checkpoint(
    net: Net, spec: Spec, test: Split, full: bool, verdicts: Path, tick: Tick
) -> tuple[dict[str, float], dict[str, str]]:
    """Attack a network on the test images.

    Args:
        net: the network, in eval mode on its device.
        spec: names attacks, eps and the number of images for AutoAttack.
        test: the test images.
        full: whether AutoAttack and the sanity flags are wanted.
        verdicts: the path, without suffix, of the files that keep verdicts on single images.
        tick: receives the progress of each attack.

    Returns: accuracies by attack with `worst`, counts `n` and `aa_n`, and costs as `cost/...`;
        then the sanity flags. AutoAttack sees the first `limit_aa` images, and `worst` is over
        the images that saw every attack.
    """
    device = next(net.parameters()).device
    x, y = to_float(test.x).to(device), test.y.to(device)
    start = time.perf_counter()
    gradient_attacks = [name for name in spec.attacks if name != "aa"]
    probes = NUM_PROBES if full else 0
    path = verdicts.with_suffix(".npz")
    gradient_results = run_attacks(net, x, y, gradient_attacks, spec, path, tick, probes)
    results, worst, flags = [gradient_results], gradient_results.worst, gradient_results.flags
    values = {"n": float(len(x)), **gradient_results.accuracy()}
    if full and "aa" in spec.attacks:
        count = min(spec.limit_aa or len(x), len(x))
        path = verdicts.with_name(f"{verdicts.name}_aa.npz")
        autoattack = run_attacks(net, x[:count], y[:count], ["aa"], spec, path, tick)
        results.append(autoattack)
        combined = gradient_results.first_images(count) | autoattack
        worst = combined.worst
        flags = flags | combined.contradictions()
        values["aa"] = autoattack.accuracy()["aa"]
        values["aa_n"] = float(count)
    values["worst"] = worst.float().mean().item()
    values["cost/eval_seconds"] = time.perf_counter() - start
    return values | sum_costs(results), flags


def sum_costs(results: list[attacks.Evaluation]) -> dict[str, float]:
    """Return passes of all attacks, and the seconds of each."""
    forwards = backwards = 0
    seconds = {}
    for result in results:
        for name, cost in result.cost.items():
            forwards += cost.forwards
            backwards += cost.backwards
            seconds[f"cost/{name}_seconds"] = cost.seconds
    passes = {"cost/eval_forwards": float(forwards), "cost/eval_backwards": float(backwards)}
    return passes | seconds


def run_attacks(
    net: Net,
    x: Tensor,
    y: Tensor,
    names: list[str],
    spec: Spec,
    path: Path,
    tick: Tick,
    probes: int = 0,
) -> attacks.Evaluation:
    """Attack images and keep the verdicts in a file, or continue what is in it."""
    evaluate = partial(
        attacks.evaluate, net, x, y, names, eps=spec.eps, probes=probes, record=path, progress=tick
    )
    try:
        return evaluate()
    except ForeignVerdictsError:
        # An earlier version of the attacks wrote it.
        path.unlink()
        return evaluate()
