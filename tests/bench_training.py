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
from bench import datasets, models
from bench.datasets import fetching, loading
from bench.execution.speed import operations
from bench.protocol.spec import Spec
from bench.protocol.suites import Training
from bench.tracking.store import TrackingStore
from bench.training import memory_layout
from bench.training.trainer import Trainer, TrainingModule
from methods.base import Batch, Net

pytestmark = pytest.mark.timeout(3600)
NETS = {  # data set, student and teacher, batch, rounds
    "resnet8-w4, digits": ("digits", "resnet8-w4", "resnet8-w16", 64, 21),
    "resnet8-w16-s2, cifar-mini": ("cifar10", "resnet8-w16-s2", "resnet14-w16-s2", 128, 11),
    "ResNet-18 of width 16": ("cifar10", "resnet18-w16", "resnet18-w16", 64, 7),
    "ResNet-18 of width 64": ("cifar10", "resnet18", "resnet18", 32, 7),
}
CASES = [(networks, "rslad") for networks in NETS]
CASES += [
    (networks, method) for networks in NETS for method in ("ard", "gacd") if "ResNet" in networks
]
TARGETS = {  # the ratio to reach
    ("ResNet-18 of width 16", "fp32"): 1.4,
    ("ResNet-18 of width 16", "bf16"): 2.5,
    ("ResNet-18 of width 64", "fp32"): 1.2,
    ("ResNet-18 of width 64", "bf16"): 2.2,
}
CLOSE = {"fp32": 1e-3, "bf16": 1e-2}  # losses of both ways on the same images, relative
SHARE = 0.75  # of a matrix product's rate, for the attack on a ResNet-18 of width 64 to reach
FEW = 8  # images that both ways are compared on
ROOT = Path(os.environ.get("BENCH_DATA_ROOT", "data"))


def harness(
    method: str,
    dataset: str,
    arch: str,
    teacher: Net,
    batch: int,
    work: Path,
    images: int = 0,
    precision: str = "fp32",
) -> Trainer:
    training = Training(epochs=1, batch=batch, averaging=())
    spec = Spec(suite="bench@1", role="student", dataset=dataset, arch=arch, method=method, hyper={}, teachers={},
                seed=0, training=training, eps=BUDGET.eps, inner_step=BUDGET.step, inner_steps=BUDGET.steps,
                attacks=(), full_checkpoints=(), precision=precision)  # type: ignore[arg-type]  # fmt: skip
    found = loading.load_data(
        dataset, ROOT, limit_train=images or 2 * batch + 20, limit_val=10, limit_test=10
    )
    torch.manual_seed(0)
    return Trainer(
        TrainingModule(
            methods.load(method)(), models.build(arch, found.info), {"robust": teacher}, 100
        ),
        found,
        spec,
        work,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("networks", "method"), CASES)
def test_step(networks: str, precision: str, method: str, benchmark: Any, tmp_path: Path) -> None:
    dataset, arch, taught_by, batch, rounds = NETS[networks]
    needs(dataset, precision)
    torch.manual_seed(1)
    teacher = models.build(
        taught_by,
        loading.load_data(dataset, ROOT, limit_train=100, limit_val=10, limit_test=10).info,
    )
    trainer = harness(
        method, dataset, arch, copy.deepcopy(teacher), batch, tmp_path, precision=precision
    )
    images = trainer.make_batch(trainer.epoch_batches()[0], 0)
    same(method, trainer.module.student, teacher.eval().requires_grad_(False), images)
    context = torch.multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    objective = trainer.module
    nets = copy.deepcopy(
        (objective.student, teacher, objective.parts)
    )  # what is sent is shared memory
    apart = context.Process(target=reference.serve, args=(other, method, *nets), daemon=True)
    apart.start()
    trainer.set_learning_rates(0)
    times: dict[str, list[float]] = {"reference": [], "harness": []}
    for number in range(rounds + 1):  # the first is a warm-up
        one = replace(images)
        pipe.send((number, one.x, one.y))
        theirs, loss, adv = pipe.recv()
        if (
            number == 0
        ):  # on the same images: `same` compares the attacks, whose signs turn with rounding here
            with trainer.autocast():
                terms = copy.deepcopy(trainer.module).train()(replace(one), adv)
            assert float(sum(terms.values())) == pytest.approx(loss, rel=CLOSE[precision])
        torch.manual_seed(number)
        times["reference"].append(theirs)
        times["harness"].append(seconds(trainer.update, one))
    pipe.send(None)
    benchmark.pedantic(trainer.update, (replace(images),), rounds=1)
    ratio = compare(
        f"{method}, {networks}, {precision}",
        benchmark,
        {way: values[1:] for way, values in times.items()},
    )
    assert ratio >= TARGETS.get((networks, precision), 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attack(precision: str, benchmark: Any, tmp_path: Path) -> None:
    """How near the attack on a ResNet-18 of width 64 comes to the rate of a matrix product in the same precision."""
    dataset, arch, _, batch, rounds = NETS["ResNet-18 of width 64"]
    needs(dataset, precision)
    trainer = harness(
        "ard",
        dataset,
        arch,
        models.build(arch, datasets.get(dataset)),
        batch,
        tmp_path,
        0,
        precision,
    )
    images, student = trainer.make_batch(trainer.epoch_batches()[0], 0), trainer.module.student
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    products = {
        size: [torch.randn(size, size).to(kind) for _ in range(2)] for size in (1024, 2048, 4096)
    }
    rates: dict[str, list[float]] = {
        "attack": [],
        **{f"product of {size}": [] for size in products},
    }
    whole, rest = (
        operations(student, student, images.x.shape[1:], steps) for steps in (BUDGET.steps, 0)
    )
    for _ in range(rounds + 1):
        rates["attack"].append(batch * (whole - rest) / seconds(trainer.attack, replace(images)))
        for size, pair in products.items():
            rates[f"product of {size}"].append(2 * size**3 / seconds(torch.mm, *pair))
    middle = {name: statistics.median(values[1:]) for name, values in rates.items()}
    benchmark.pedantic(trainer.attack, (replace(images),), rounds=1)
    share = middle["attack"] / max(rate for name, rate in middle.items() if name != "attack")
    benchmark.extra_info |= {"rates": middle, "share": share}
    said = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in middle.items())
    print(f"\nattack, ResNet-18 of width 64, {precision}, GFLOP/s: {said}; share {share:.2f}")
    assert share >= SHARE


def test_epoch(benchmark: Any, tmp_path: Path) -> None:
    """An epoch of rslad on 2,048 images of CIFAR-10, files to update: torchvision's DataLoader with as many processes as
    cores beside the reference's step, and the harness's own.
    """
    needs("cifar10")
    batch, images = 128, 2048
    torch.manual_seed(1)
    teacher = models.build("resnet14-w16-s2", datasets.get("cifar10")).eval().requires_grad_(False)
    trainer = harness(
        "rslad", "cifar10", "resnet8-w16-s2", copy.deepcopy(teacher), batch, tmp_path, images
    )
    student, teacher = as_released(trainer.module.student), as_released(teacher)
    optimiser = optimiser_of(student)

    def reference_epoch() -> None:
        for x, y in reference.loaded(ROOT, images, batch, os.cpu_count() or 1):
            reference.rslad(student, teacher, optimiser, x, y)

    benchmark.pedantic(trainer._train_epoch, (0, lambda *_: None), rounds=1)
    compare(
        "epoch",
        benchmark,
        alternately(reference_epoch, lambda: trainer._train_epoch(0, lambda *_: None), 5),
    )


def test_images(benchmark: Any, tmp_path: Path) -> None:
    """The same without a network: what loading and augmentation take."""
    needs("cifar10")
    batch, images = 128, 2048
    trainer = harness("rslad", "cifar10", "resnet8-w4", models.build("resnet8-w4", datasets.get("cifar10")), batch,
                      tmp_path, images)  # fmt: skip

    def harness_epoch() -> None:
        for index in trainer.epoch_batches():
            trainer.make_batch(index, 0)

    def reference_epoch() -> None:
        for _ in reference.loaded(ROOT, images, batch, os.cpu_count() or 1):
            pass

    benchmark.pedantic(harness_epoch, rounds=1)
    compare("images", benchmark, alternately(reference_epoch, harness_epoch, 7))


def test_tracking(benchmark: Any, tmp_path: Path) -> None:
    """The metrics of an epoch in MLflow's database: a call for each, as scripts have it, and the harness's one call."""
    row = {
        "epoch": 0.0,
        "lr": 0.1,
        "train/kl_adv": 1.5,
        "train/kl_nat": 0.5,
        "val/clean": 0.5,
        "val/robust": 0.3,
    }
    store = TrackingStore(tmp_path)
    singly, together = (
        store.open_run("bench@1", way, {"way": way}, "", ("way",)) for way in ("singly", "together")
    )
    steps = {run.run_id: itertools.count() for run in (singly, together)}

    def reference_epoch() -> None:
        step = next(steps[singly.run_id])
        for name, value in row.items():
            store.client.log_metric(singly.run_id, name, value, step=step)

    def harness_epoch() -> None:
        together.log_epoch(row, next(steps[together.run_id]))

    reference_epoch()
    benchmark.pedantic(harness_epoch, rounds=1)
    compare("tracking", benchmark, alternately(reference_epoch, harness_epoch, 20))
    for name in row:
        first, second = (
            [
                (point.step, point.value)
                for point in store.client.get_metric_history(run.run_id, name)
            ]
            for run in (singly, together)
        )
        assert first == second
        assert len(first) == 22


def needs(dataset: str, precision: str = "fp32") -> None:
    if fetching.is_missing(dataset, ROOT):
        pytest.skip(f"needs the real {dataset} under {ROOT}")
    if precision == "bf16" and not memory_layout.has_bf16(torch.device("cpu")):
        pytest.skip("this processor has no instructions for bfloat16")


def seconds(work: Callable[..., object], *given: object) -> float:
    start = time.perf_counter()
    work(*given)
    return time.perf_counter() - start


def alternately(
    slow: Callable[[], object], fast: Callable[[], object], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each, after a round to warm up."""
    times: dict[str, list[float]] = {"reference": [], "harness": []}
    for number in range(rounds + 1):
        for way, work in (("reference", slow), ("harness", fast)):
            times[way] += [seconds(work)] * (number > 0)
    return times


def compare(name: str, benchmark: Any, times: dict[str, list[float]]) -> float:
    """Prints and keeps the medians; returns their ratio."""
    slow, fast = (statistics.median(values) for values in times.values())
    ratios = sorted(a / b for a, b in zip(*times.values(), strict=True))
    benchmark.extra_info |= {
        "reference_seconds": slow,
        "harness_seconds": fast,
        "ratio": slow / fast,
    }
    print(
        f"\n{name}: {slow:.3f} s / {fast:.3f} s = {slow / fast:.2f} (each pair {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    return slow / fast


def same(method: str, student: Net, teacher: Net, images: Batch) -> None:
    """Both ways make the same adversarial images and the same loss.

    In double precision: in single precision, rounding turns the signs of gradients that are almost 0.
    """
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    nets = copy.deepcopy(student), {"robust": copy.deepcopy(teacher)}
    objective = TrainingModule(methods.load(method)(), *nets, images.num_train).double().train()
    parts = copy.deepcopy(objective.parts)
    few = replace(images, x=images.x[:FEW].double(), y=images.y[:FEW], index=images.index[:FEW])
    torch.manual_seed(0)
    adv = objective.attack(few)
    terms = objective(few, adv)
    torch.manual_seed(0)
    step = getattr(reference, method)
    expected, loss = step(
        student, teacher, optimiser_of(student, parts), few.x, few.y, *parts.values()
    )
    torch.testing.assert_close(adv, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(sum(terms.values()), loss, rtol=1e-9, atol=0)
