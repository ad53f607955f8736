"""How much faster training is than the authors' way: steps, attack, epochs, images, tracking.

    pytest -s tests/bench_training.py [--benchmark-json FILE]

Not collected with the tests. Both ways do the same mathematics. A case times the two alternately,
so that a busy machine slows both; the ratio is that of the medians. The reference is
tests/reference.py.
"""

from __future__ import annotations

import copy
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from reference import BUDGET, as_released, optimiser_of
from specs import make_spec

import methods
from bench import datasets, models
from bench.datasets import loading
from bench.datasets.files import fetching
from bench.execution.speed import step_operations
from bench.tracking.store import TrackingStore
from bench.training import memory_layout
from bench.training.trainer import Trainer, TrainingModule
from leaderboards.schema.spec import Training
from methods.base import Batch, Net

pytestmark = pytest.mark.timeout(3600)


@dataclass(frozen=True)
class Case:
    """A data set, architectures of student and teacher, a batch size, and how often to time."""

    dataset: str
    student: str
    teacher: str
    batch: int
    rounds: int


WIDE = "ResNet-18 of width 64"
CASES = {
    "resnet8-w4, digits": Case("digits", "resnet8-w4", "resnet8-w16", 64, 21),
    "resnet8-w16-s2, cifar-mini": Case("cifar10", "resnet8-w16-s2", "resnet14-w16-s2", 128, 11),
    "ResNet-18 of width 16": Case("cifar10", "resnet18-w16", "resnet18-w16", 64, 7),
    WIDE: Case("cifar10", "resnet18", "resnet18", 32, 7),
}
STEPS = [(networks, "rslad") for networks in CASES]
STEPS += itertools.product(("ResNet-18 of width 16", WIDE), ("ard", "gacd"))
# The ratio to reach.
TARGETS = {
    ("ResNet-18 of width 16", "fp32"): 1.4,
    ("ResNet-18 of width 16", "bf16"): 2.5,
    (WIDE, "fp32"): 1.2,
    (WIDE, "bf16"): 2.2,
}
# The relative difference of both losses on the same images.
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2}
# The share of a matrix product's rate that the attack on the wide ResNet-18 must reach.
MIN_SHARE = 0.75
MATRIX_SIZES = (1024, 2048, 4096)
# Images on which both ways are compared in double precision.
COMPARED_IMAGES = 8
# Batch size and images of the cases that time an epoch.
EPOCH_BATCH, EPOCH_IMAGES = 128, 2048
ROOT = Path(os.environ.get("BENCH_DATA_ROOT", "data"))


def make_trainer(
    method: str, case: Case, teacher: Net, folder: Path, images: int = 0, precision: Any = "fp32"
) -> Trainer:
    """Return a trainer on some images of the data set, by default enough for two batches."""
    spec = make_spec(
        Training(epochs=1, batch=case.batch, averaging=()),
        eps=BUDGET.eps,
        inner_step=BUDGET.step,
        inner_steps=BUDGET.steps,
        precision=precision,
    )
    limit_train = images or 2 * case.batch + 20
    data = loading.load_data(
        case.dataset, ROOT, limit_train=limit_train, limit_val=10, limit_test=10
    )
    torch.manual_seed(0)
    student = models.build(case.student, data.info)
    module = TrainingModule(methods.load(method)(), student, {"robust": teacher}, 100)
    return Trainer(module, data, spec, folder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("networks", "method"), STEPS)
def test_step(networks: str, precision: str, method: str, benchmark: Any, tmp_path: Path) -> None:
    case = CASES[networks]
    skip_unless_possible(case.dataset, precision)
    torch.manual_seed(1)
    teacher = models.build(case.teacher, datasets.get(case.dataset))
    trainer = make_trainer(method, case, copy.deepcopy(teacher), tmp_path, precision=precision)
    images = trainer.make_batch(trainer.epoch_batches()[0], 0)
    teacher.eval().requires_grad_(False)
    check_same_step(method, trainer.module.student, teacher, images)
    trainer.set_learning_rates(0)
    times: dict[str, list[float]] = {"reference": [], "harness": []}
    with reference_process(method, trainer, teacher) as pipe:
        for number in range(case.rounds + 1):
            batch = replace(images)
            pipe.send((number, batch.x, batch.y))
            reference_seconds, loss, adv = pipe.recv()
            if number == 0:
                assert loss_at(trainer, batch, adv) == pytest.approx(loss, rel=TOLERANCE[precision])
            torch.manual_seed(number)
            times["reference"].append(reference_seconds)
            times["harness"].append(measure_seconds(trainer.update, batch))
    benchmark.pedantic(trainer.update, (replace(images),), rounds=1)
    # The first round warms up.
    warm = {way: values[1:] for way, values in times.items()}
    ratio = compare_times(f"{method}, {networks}, {precision}", benchmark, warm)
    assert ratio >= TARGETS.get((networks, precision), 0)


@contextmanager
def reference_process(method: str, trainer: Trainer, teacher: Net) -> Iterator[Connection]:
    """Train by the reference in a process of its own, as long as the block runs."""
    context = torch.multiprocessing.get_context("spawn")
    pipe, reference_pipe = context.Pipe()
    # Tensors that are sent become shared memory, so the process gets copies.
    module = trainer.module
    networks = copy.deepcopy((module.student, teacher, module.parts))
    arguments = (reference_pipe, method, *networks)
    context.Process(target=reference.serve, args=arguments, daemon=True).start()
    yield pipe
    pipe.send(None)


def loss_at(trainer: Trainer, batch: Batch, adv: torch.Tensor) -> float:
    """Return the harness's loss at the reference's adversarial examples.

    At its own, the loss would differ: rounding turns signs of the attack's gradients.
    """
    with trainer.autocast():
        terms = copy.deepcopy(trainer.module).train()(replace(batch), adv)
    return float(sum(terms.values()))


def check_same_step(method: str, student: Net, teacher: Net, images: Batch) -> None:
    """Assert that both ways make the same adversarial examples and the same loss.

    In double precision: in single precision, rounding turns the signs of gradients that are
    almost 0.
    """
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    teachers = {"robust": copy.deepcopy(teacher)}
    module = TrainingModule(
        methods.load(method)(), copy.deepcopy(student), teachers, images.num_train
    )
    module.double().train()
    parts = copy.deepcopy(module.parts)
    batch = replace(
        images,
        x=images.x[:COMPARED_IMAGES].double(),
        y=images.y[:COMPARED_IMAGES],
        index=images.index[:COMPARED_IMAGES],
    )
    torch.manual_seed(0)
    adv = module.attack(batch)
    terms = module(batch, adv)
    torch.manual_seed(0)
    reference_step = getattr(reference, method)
    optimiser = optimiser_of(student, parts)
    expected_adv, expected_loss = reference_step(
        student, teacher, optimiser, batch.x, batch.y, *parts.values()
    )
    torch.testing.assert_close(adv, expected_adv, rtol=0, atol=1e-9)
    torch.testing.assert_close(sum(terms.values()), expected_loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attack(precision: str, benchmark: Any, tmp_path: Path) -> None:
    """Compare the attack on the wide ResNet-18 with matrix products in the same precision."""
    case = CASES[WIDE]
    skip_unless_possible(case.dataset, precision)
    teacher = models.build(case.student, datasets.get(case.dataset))
    trainer = make_trainer("ard", case, teacher, tmp_path, precision=precision)
    images = trainer.make_batch(trainer.epoch_batches()[0], 0)
    operations = case.batch * attack_operations(trainer.module.student, images)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrices = {}
    rates: dict[str, list[float]] = {"attack": []}
    for size in MATRIX_SIZES:
        matrices[size] = [torch.randn(size, size).to(dtype) for _ in range(2)]
        rates[f"product of {size}"] = []
    for _ in range(case.rounds + 1):
        seconds = measure_seconds(trainer.attack, replace(images))
        rates["attack"].append(operations / seconds)
        for size, pair in matrices.items():
            seconds = measure_seconds(torch.mm, *pair)
            rates[f"product of {size}"].append(2 * size**3 / seconds)
    # The first round warms up.
    medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
    benchmark.pedantic(trainer.attack, (replace(images),), rounds=1)
    share = medians["attack"] / max(medians[f"product of {size}"] for size in MATRIX_SIZES)
    benchmark.extra_info |= {"rates": medians, "share": share}
    text = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in medians.items())
    print(f"\nattack, {WIDE}, {precision}, GFLOP/s: {text}; share {share:.2f}")
    assert share >= MIN_SHARE


def attack_operations(student: Net, images: Batch) -> int:
    """Return the FLOP of the attack for one image."""
    shape = images.x.shape[1:]
    step = step_operations(student, student, shape, BUDGET.steps)
    return step - step_operations(student, student, shape, 0)


def test_epoch(benchmark: Any, tmp_path: Path) -> None:
    """Time an epoch of RSLAD on 2,048 images of CIFAR-10, from files to updates.

    The reference is torchvision's DataLoader, with as many processes as cores, and the
    reference's step.
    """
    skip_unless_possible("cifar10")
    case = Case("cifar10", "resnet8-w16-s2", "resnet14-w16-s2", EPOCH_BATCH, 5)
    torch.manual_seed(1)
    teacher = models.build(case.teacher, datasets.get("cifar10")).eval().requires_grad_(False)
    trainer = make_trainer("rslad", case, copy.deepcopy(teacher), tmp_path, EPOCH_IMAGES)
    student, teacher = as_released(trainer.module.student), as_released(teacher)
    optimiser = optimiser_of(student)

    def reference_epoch() -> None:
        for x, y in reference_batches():
            reference.rslad(student, teacher, optimiser, x, y)

    def harness_epoch() -> None:
        trainer._train_epoch(0, lambda *_: None)

    benchmark.pedantic(harness_epoch, rounds=1)
    times = time_alternately(reference_epoch, harness_epoch, case.rounds)
    compare_times("epoch", benchmark, times)


def test_images(benchmark: Any, tmp_path: Path) -> None:
    """Time the loading and augmentation of an epoch's images, without a network."""
    skip_unless_possible("cifar10")
    case = Case("cifar10", "resnet8-w4", "resnet8-w4", EPOCH_BATCH, 7)
    teacher = models.build(case.teacher, datasets.get("cifar10"))
    trainer = make_trainer("rslad", case, teacher, tmp_path, EPOCH_IMAGES)

    def harness_epoch() -> None:
        for index in trainer.epoch_batches():
            trainer.make_batch(index, 0)

    def reference_epoch() -> None:
        for _ in reference_batches():
            pass

    benchmark.pedantic(harness_epoch, rounds=1)
    times = time_alternately(reference_epoch, harness_epoch, case.rounds)
    compare_times("images", benchmark, times)


def reference_batches() -> Iterator[list[torch.Tensor]]:
    return reference.loaded(ROOT, EPOCH_IMAGES, EPOCH_BATCH, os.cpu_count() or 1)


def test_tracking(benchmark: Any, tmp_path: Path) -> None:
    """Log the metrics of an epoch in MLflow's database.

    The reference makes a call for each metric, as scripts do, the harness one call for all.
    """
    row = {
        "epoch": 0.0,
        "lr": 0.1,
        "train/kl_adv": 1.5,
        "train/kl_nat": 0.5,
        "val/clean": 0.5,
        "val/robust": 0.3,
    }
    store = TrackingStore(tmp_path)
    singly = store.open_run("bench@1", "singly", {"way": "singly"}, "", ("way",))
    together = store.open_run("bench@1", "together", {"way": "together"}, "", ("way",))
    reference_steps, harness_steps = itertools.count(), itertools.count()

    def reference_epoch() -> None:
        step = next(reference_steps)
        for name, value in row.items():
            store.client.log_metric(singly.run_id, name, value, step=step)

    def harness_epoch() -> None:
        together.log_epoch(row, next(harness_steps))

    reference_epoch()
    benchmark.pedantic(harness_epoch, rounds=1)
    times = time_alternately(reference_epoch, harness_epoch, 20)
    compare_times("tracking", benchmark, times)
    for name in row:
        expected = metric_history(store, singly.run_id, name)
        assert expected == metric_history(store, together.run_id, name)
        assert len(expected) == 22


def metric_history(store: TrackingStore, run_id: str, name: str) -> list[tuple[int, float]]:
    points = store.client.get_metric_history(run_id, name)
    return [(point.step, point.value) for point in points]


def skip_unless_possible(dataset: str, precision: str = "fp32") -> None:
    """Skip a case whose data set or precision this machine lacks."""
    if fetching.is_missing(dataset, ROOT):
        pytest.skip(f"needs the real {dataset} under {ROOT}")
    if precision == "bf16" and not memory_layout.has_bf16(torch.device("cpu")):
        pytest.skip("this processor has no instructions for bfloat16")


def measure_seconds(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def time_alternately(
    reference_function: Callable[[], object], harness_function: Callable[[], object], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of each function in each round, after a round to warm up."""
    times: dict[str, list[float]] = {"reference": [], "harness": []}
    for _ in range(rounds + 1):
        times["reference"].append(measure_seconds(reference_function))
        times["harness"].append(measure_seconds(harness_function))
    return {way: values[1:] for way, values in times.items()}


def compare_times(name: str, benchmark: Any, times: dict[str, list[float]]) -> float:
    """Print and keep the medians; return their ratio."""
    slow = statistics.median(times["reference"])
    fast = statistics.median(times["harness"])
    pairs = zip(times["reference"], times["harness"], strict=True)
    ratios = [reference_time / harness_time for reference_time, harness_time in pairs]
    ratio = slow / fast
    benchmark.extra_info |= {"reference_seconds": slow, "harness_seconds": fast, "ratio": ratio}
    spread = f"each pair {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"\n{name}: {slow:.3f} s / {fast:.3f} s = {ratio:.2f} ({spread})")
    return ratio
