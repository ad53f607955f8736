"""How much faster training is than the authors' way of writing it: steps, epochs, images, the record of an epoch.

    pytest -s tests/bench_training.py [--benchmark-json FILE]

Not collected with the tests. Both do the same mathematics. A case times the two alternately, so that a busy machine
slows both; the ratio is that of the medians. The reference is tests/reference.py.
"""

from __future__ import annotations

import copy
import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from reference import BUDGET, as_released, optimiser_of

import methods
from bench import data, datasets, models
from bench.spec import Spec
from bench.suites import Training
from bench.track import Store
from bench.train import Objective, Trainer
from methods.base import Batch, Net

pytestmark = pytest.mark.timeout(3600)
CASES = {  # method, student and teacher, batch, rounds, ratio to reach
    "rslad, resnet8-w4, digits": ("rslad", "digits", "resnet8-w4", "resnet8-w16", 64, 21, None),
    "rslad, resnet8-w16-s2, cifar-mini": ("rslad", "cifar10", "resnet8-w16-s2", "resnet14-w16-s2", 128, 11, None),
    "rslad, ResNet-18 of width 16": ("rslad", "cifar10", "resnet18-w16", "resnet18-w16", 64, 7, 1.4),
    "ard, ResNet-18 of width 16": ("ard", "cifar10", "resnet18-w16", "resnet18-w16", 64, 7, 1.4),
    "gacd, ResNet-18 of width 16": ("gacd", "cifar10", "resnet18-w16", "resnet18-w16", 64, 7, 1.4),
    "rslad, ResNet-18 of width 64": ("rslad", "cifar10", "resnet18", "resnet18", 32, 7, 1.2),
    "ard, ResNet-18 of width 64": ("ard", "cifar10", "resnet18", "resnet18", 32, 7, 1.2),
    "gacd, ResNet-18 of width 64": ("gacd", "cifar10", "resnet18", "resnet18", 32, 7, 1.2),
}
FEW = 8  # images that both ways are compared on
ROOT = Path(os.environ.get("BENCH_DATA_ROOT", "data"))


def harness(method: str, dataset: str, arch: str, teacher: Net, batch: int, work: Path, images: int = 0) -> Trainer:
    training = Training(epochs=1, batch=batch, averaging=())
    spec = Spec(suite="bench@1", role="student", dataset=dataset, arch=arch, method=method, hyper={}, teachers={},
                seed=0, training=training, eps=BUDGET.eps, inner_step=BUDGET.step, inner_steps=BUDGET.steps,
                attacks=(), full_checkpoints=(), precision="fp32")  # fmt: skip
    found = data.load(dataset, ROOT, limit_train=images or 2 * batch + 20, limit_val=10, limit_test=10)
    torch.manual_seed(0)
    return Trainer(
        Objective(methods.load(method)(), models.build(arch, found.info), {"robust": teacher}, 100), found, spec, work
    )


@pytest.mark.parametrize("name", CASES)
def test_step(name: str, benchmark: Any, tmp_path: Path) -> None:
    method, dataset, arch, taught_by, batch, rounds, least = CASES[name]
    real(dataset)
    torch.manual_seed(1)
    teacher = models.build(taught_by, data.load(dataset, ROOT, limit_train=100, limit_val=10, limit_test=10).info)
    trainer = harness(method, dataset, arch, copy.deepcopy(teacher), batch, tmp_path)
    images = trainer.batch(trainer.order()[0], 0)
    same(method, trainer.objective.student, teacher.eval().requires_grad_(False), images)
    context = torch.multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    objective = trainer.objective
    nets = copy.deepcopy((objective.student, teacher, objective.parts))  # what is sent is shared memory
    apart = context.Process(target=reference.serve, args=(other, method, *nets), daemon=True)
    apart.start()
    trainer.set_rate(0)
    times: dict[str, list[float]] = {"reference": [], "harness": []}
    for number in range(rounds + 1):  # the first is a warm-up
        one = replace(images)
        pipe.send((number, one.x, one.y))
        seconds, loss, adv = pipe.recv()
        if number == 0:  # on the same images: `same` compares the attacks, whose signs turn with rounding here
            terms = copy.deepcopy(trainer.objective).train()(replace(one), adv)
            assert float(sum(terms.values())) == pytest.approx(loss, rel=1e-3)
        torch.manual_seed(number)
        start = time.perf_counter()
        trainer.step(one)
        times["reference"].append(seconds)
        times["harness"].append(time.perf_counter() - start)
    pipe.send(None)
    benchmark.pedantic(trainer.step, (replace(images),), rounds=1)
    ratio = compare(name, benchmark, {way: values[1:] for way, values in times.items()})
    assert least is None or ratio >= least


def test_epoch(benchmark: Any, tmp_path: Path) -> None:
    """An epoch of rslad on 2,048 images of CIFAR-10, files to update: torchvision's DataLoader with as many processes as
    cores beside the reference's step, and the harness's own.
    """
    real("cifar10")
    batch, images = 128, 2048
    torch.manual_seed(1)
    teacher = models.build("resnet14-w16-s2", datasets.get("cifar10")).eval().requires_grad_(False)
    trainer = harness("rslad", "cifar10", "resnet8-w16-s2", copy.deepcopy(teacher), batch, tmp_path, images)
    student, teacher = as_released(trainer.objective.student), as_released(teacher)
    optimiser = optimiser_of(student)

    def reference_epoch() -> None:
        for x, y in reference.loaded(ROOT, images, batch, os.cpu_count() or 1):
            reference.rslad(student, teacher, optimiser, x, y)

    benchmark.pedantic(trainer._epoch, (0, lambda *_: None), rounds=1)
    compare("epoch", benchmark, alternately(reference_epoch, lambda: trainer._epoch(0, lambda *_: None), 5))


def test_images(benchmark: Any, tmp_path: Path) -> None:
    """The same without a network: what loading and augmentation take."""
    real("cifar10")
    batch, images = 128, 2048
    trainer = harness("rslad", "cifar10", "resnet8-w4", models.build("resnet8-w4", datasets.get("cifar10")), batch,
                      tmp_path, images)  # fmt: skip

    def harness_epoch() -> None:
        for index in trainer.order():
            trainer.batch(index, 0)

    def reference_epoch() -> None:
        for _ in reference.loaded(ROOT, images, batch, os.cpu_count() or 1):
            pass

    benchmark.pedantic(harness_epoch, rounds=1)
    compare("images", benchmark, alternately(reference_epoch, harness_epoch, 7))


def test_tracking(benchmark: Any, tmp_path: Path) -> None:
    """The metrics of an epoch in MLflow's database: a call for each, as scripts have it, and the harness's one call."""
    row = {"epoch": 0.0, "lr": 0.1, "train/kl_adv": 1.5, "train/kl_nat": 0.5, "val/clean": 0.5, "val/robust": 0.3}
    store = Store(tmp_path)
    singly, together = (store.open("bench@1", way, {"way": way}, "", ("way",)) for way in ("singly", "together"))
    steps = {run.run_id: itertools.count() for run in (singly, together)}

    def reference_epoch() -> None:
        step = next(steps[singly.run_id])
        for name, value in row.items():
            store.client.log_metric(singly.run_id, name, value, step=step)

    def harness_epoch() -> None:
        together.epoch(row, next(steps[together.run_id]))

    reference_epoch()
    benchmark.pedantic(harness_epoch, rounds=1)
    compare("tracking", benchmark, alternately(reference_epoch, harness_epoch, 20))
    for name in row:
        first, second = (
            [(point.step, point.value) for point in store.client.get_metric_history(run.run_id, name)]
            for run in (singly, together)
        )
        assert first == second
        assert len(first) == 22


def real(dataset: str) -> None:
    if data.missing(dataset, ROOT):
        pytest.skip(f"needs the real {dataset} under {ROOT}")


def alternately(slow: Callable[[], object], fast: Callable[[], object], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, after a round to warm up."""
    times: dict[str, list[float]] = {"reference": [], "harness": []}
    for number in range(rounds + 1):
        for way, work in (("reference", slow), ("harness", fast)):
            start = time.perf_counter()
            work()
            times[way] += [time.perf_counter() - start] * (number > 0)
    return times


def compare(name: str, benchmark: Any, times: dict[str, list[float]]) -> float:
    """Prints and keeps the medians; returns their ratio."""
    slow, fast = (statistics.median(values) for values in times.values())
    ratios = sorted(a / b for a, b in zip(*times.values(), strict=True))
    benchmark.extra_info |= {"reference_seconds": slow, "harness_seconds": fast, "ratio": slow / fast}
    print(f"\n{name}: {slow:.3f} s / {fast:.3f} s = {slow / fast:.2f} (each pair {ratios[0]:.2f} to {ratios[-1]:.2f})")
    return slow / fast


def same(method: str, student: Net, teacher: Net, images: Batch) -> None:
    """Both ways make the same adversarial images and the same loss.

    In double precision: in single precision, rounding turns the signs of gradients that are almost 0.
    """
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    nets = copy.deepcopy(student), {"robust": copy.deepcopy(teacher)}
    objective = Objective(methods.load(method)(), *nets, images.num_train).double().train()
    parts = copy.deepcopy(objective.parts)
    few = replace(images, x=images.x[:FEW].double(), y=images.y[:FEW], index=images.index[:FEW])
    torch.manual_seed(0)
    adv = objective.attack(few)
    terms = objective(few, adv)
    torch.manual_seed(0)
    step = getattr(reference, method)
    expected, loss = step(student, teacher, optimiser_of(student, parts), few.x, few.y, *parts.values())
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(sum(terms.values()), loss, rtol=1e-9, atol=0)
