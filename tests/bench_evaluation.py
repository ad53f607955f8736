"""Speed of the evaluation suite against torchattacks, and agreement with the official AutoAttack.

    pytest tests/bench_evaluation.py [-k speed] [--benchmark-json FILE]

Not collected with the tests: it takes an hour on two cores, most of it the references. A speed case
times a reference and then the suite, in one run on the same model and images. It fails if the ratio
is under its target (reached ratios: docs/lab/agreement.md) or a verdict differs. Models are trained
here, for a minute or two, on the real CIFAR-10.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from pyautoattack import AutoAttack
from reference import as_released
from torch import Tensor, nn

from attacks import evaluate
from attacks.components.margin_attacks import MarginPGD
from bench import models
from bench.datasets import CIFAR10, augmentation, loading
from bench.datasets.files import fetching
from methods.base import Budget
from methods.inner import ce, pgd

EPS, SEED, BATCH = 8 / 255, 0, 250
SUITE = ("fgsm", "pgd20", "pgd20_trades", "cw_inf", "aa")
ROOT = os.environ.get("BENCH_DATA_ROOT", "data")
pytestmark = [
    pytest.mark.timeout(7200),
    pytest.mark.skipif(
        bool(fetching.is_missing("cifar10", ROOT)), reason="needs the real CIFAR-10 under data/"
    ),
]


@dataclass(frozen=True)
class Case:
    """A model, its number of test images, and the ratios that suite and AutoAttack must reach."""

    arch: str
    robust: bool
    images: int
    suite: float
    autoattack: float | None
    training_steps: int = 300


CASES = {
    "robust, width 16": Case("resnet8-w16-s2", True, 384, 2.0, 1.6),
    "robust, width 64": Case("resnet8-w64-s2", True, 64, 1.6, 1.25),
    "undefended, width 16": Case("resnet8-w16-s2", False, 384, 8.0, None, training_steps=1500),
}


def train_network(case: Case) -> nn.Module:
    """Train for some hundred steps of 64 images, adversarially if robust."""
    torch.manual_seed(0)
    cifar = loading.load_data("cifar10", ROOT, limit_train=10_000)
    x, y = augmentation.to_float(cifar.train.x), cifar.train.y
    net = models.build(case.arch, CIFAR10)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, case.training_steps)
    for _ in range(case.training_steps):
        rows = torch.randint(len(x), (64,))
        images = pgd(
            net, x[rows], ce(y[rows]), Budget(EPS, EPS / 1.5, 2 if case.robust else 0), start="none"
        )
        net.train()
        optimiser.zero_grad()
        F.cross_entropy(net(images), y[rows]).backward()
        optimiser.step()
        rate.step()
    return net.eval()


def plain_components(net: nn.Module) -> list[Any]:
    """Return AutoAttack's components, of torchattacks, with the official budgets."""
    return [
        torchattacks.APGD(net, eps=EPS, steps=100, seed=SEED),
        torchattacks.APGDT(net, eps=EPS, steps=100, seed=SEED),
        torchattacks.FAB(net, norm="Linf", eps=EPS, steps=100, seed=SEED, multi_targeted=True),
        torchattacks.Square(net, eps=EPS, n_queries=5000, seed=SEED, resc_schedule=False),
    ]


def one_after_the_other(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Run every attack on all images, as a script would; return which are robust to AutoAttack."""
    for attack in (
        torchattacks.FGSM(net, eps=EPS),
        torchattacks.PGD(net, eps=EPS, alpha=2 / 255, steps=20),
        torchattacks.PGD(net, eps=EPS, alpha=0.003, steps=20),
        MarginPGD(net, "Linf", eps=EPS, alpha=2 / 255, steps=30),
    ):
        attack(x, y)
    robust = net(x).argmax(dim=1) == y
    for attack in plain_components(net):
        robust &= net(attack(x, y)).argmax(dim=1) == y
    return robust


def cascade(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Run AutoAttack with fooled images dropped between its components."""
    robust = net(x).argmax(dim=1) == y
    for attack in plain_components(net.requires_grad_(False)):
        rows = robust.nonzero().flatten()
        if len(rows):
            robust[rows] = net(attack(x[rows], y[rows])).argmax(dim=1) == y[rows]
    return robust


def measure_time(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        start = time.perf_counter()
        verdict = run()
        return time.perf_counter() - start, verdict


@cache
def network(name: str) -> nn.Module:
    return train_network(CASES[name])


def images(count: int) -> tuple[Tensor, Tensor]:
    test = loading.load_data("cifar10", ROOT, limit_test=count).test
    return augmentation.to_float(test.x), test.y


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(", ", " "))
def task(request: pytest.FixtureRequest) -> tuple[Case, nn.Module, Tensor, Tensor]:
    case = CASES[request.param]
    return case, network(request.param), *images(case.images)


def compare(
    benchmark: Any,
    task: tuple[Case, nn.Module, Tensor, Tensor],
    names: tuple[str, ...],
    reference: Any,
) -> float:
    _, net, x, y = task
    reference_seconds, expected = measure_time(lambda: reference(as_released(net), x, y))
    result = benchmark.pedantic(
        lambda: evaluate(net, x, y, names, eps=EPS, seed=SEED, batch_size=BATCH, probes=0), rounds=1
    )
    ratio = reference_seconds / float(benchmark.stats.stats.min)
    benchmark.extra_info |= {
        "reference_seconds": reference_seconds,
        "ratio": ratio,
        "standing": int(expected.sum()),
        "images": len(x),
    }
    seconds = f"{reference_seconds:.1f} s / {reference_seconds / ratio:.1f} s"
    print(f"\n{task[0]}: {seconds} = {ratio:.2f}, {int(expected.sum())} of {len(x)} robust")
    assert torch.equal(result.robust["aa"], expected)
    return ratio


def test_speed_of_the_suite_against_one_attack_after_the_other(
    benchmark: Any, task: tuple[Case, nn.Module, Tensor, Tensor]
) -> None:
    assert compare(benchmark, task, SUITE, one_after_the_other) >= task[0].suite


def test_speed_of_autoattack_against_the_plain_cascade(
    benchmark: Any, task: tuple[Case, nn.Module, Tensor, Tensor]
) -> None:
    if task[0].autoattack is None:
        pytest.skip("nothing is left to drop")
    assert compare(benchmark, task, ("aa",), cascade) >= task[0].autoattack


def print_agreement(name: str, expected: Tensor, verdict: Tensor) -> None:
    counts = f"official {int(expected.sum())} of {len(expected)}, here {int(verdict.sum())}"
    print(f"\n{name}: {counts}, {int((verdict != expected).sum())} differ")


def official_verdicts(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the official AutoAttack's verdicts (N,)."""
    attack = AutoAttack(copy.deepcopy(net).requires_grad_(False), eps=EPS, seed=SEED)
    return attack.run_standard_evaluation(x, y, batch_size=BATCH)[1] == y


@pytest.mark.parametrize("name", ["robust, width 16", "undefended, width 16"])
def test_agreement_on_every_image(name: str) -> None:
    net, (x, y) = network(name), images(512)
    expected = official_verdicts(net, x, y)
    result = evaluate(net, x, y, ("aa",), eps=EPS, seed=SEED, batch_size=BATCH, probes=0)
    print_agreement(name, expected, result.robust["aa"])
    assert torch.equal(result.robust["aa"], expected)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_agreement_of_the_search_for_devices(norm: str) -> None:
    """In each precision that this machine has, against the exact search."""
    net, (x, y) = network("robust, width 16"), images(500)
    eps = EPS if norm == "Linf" else 0.5
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net, x, y = net.to(device), x.to(device), y.to(device)
    options: dict[str, Any] = {"eps": eps, "norm": norm, "seed": SEED, "probes": 0}
    exact = evaluate(net, x, y, ("aa",), search="exact", **options)
    for precision in ("fp32", "bf16", *(("tf32",) if device == "cuda" else ())):
        result = evaluate(net, x, y, ("aa",), search="device", precision=precision, **options)
        print_agreement(f"{norm} {precision}", exact.robust["aa"], result.robust["aa"])
        costs = exact.cost["aa"], result.cost["aa"]
        print("seconds, forward and backward passes, refused:")
        print([(cost.seconds, cost.forwards, cost.backwards, cost.refused) for cost in costs])
        assert int((exact.robust["aa"] != result.robust["aa"]).sum()) <= 1


def test_agreement_with_another_seed_and_partition() -> None:
    net, (x, y) = network("robust, width 16"), images(1000)
    expected = official_verdicts(net, x, y)
    result = evaluate(net, x, y, ("aa",), eps=EPS, seed=SEED + 1, batch_size=100, probes=0)
    print_agreement("another seed and partition", expected, result.robust["aa"])
    assert int(result.robust["aa"].sum()) <= int(expected.sum()) + 2
