"""The cost of a run on this machine, from a short timed probe of its training step."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import methods
from attacks.catalog import ATTACKS
from bench import datasets, models
from bench.datasets.loading import split_sizes
from bench.execution.evaluation import count_attacked
from bench.execution.plan import PlannedRun
from bench.protocol.suites import Suite
from bench.system.log import LOGGER
from bench.teachers import cards
from bench.training.trainer import TrainingModule
from leaderboards.schema.spec import Spec
from methods import outside
from methods.base import Batch, Budget, Net

# Images of the first step, which loads libraries, and of the first step that is timed.
WARMUP_IMAGES = 2
PROBE_IMAGES = 8
SLOW_STEP = 0.25  # seconds of the timed step from which no full batch is tried
INFERENCE_IMAGES = 64  # images of the timed forward pass


@dataclass(frozen=True)
class Cost:
    """Seconds of training and of evaluation, and student passes for each training image."""

    train: float
    evaluate: float
    student_passes: float


UNKNOWN = Cost(0.0, 0.0, 0.0)


def estimate_costs(
    todo: list[PlannedRun], runs: list[PlannedRun], store: Path, device: torch.device
) -> list[Cost]:
    """Return the cost of each run to do, without its data; `runs` has the teachers to be trained.

    Runs that differ in seed alone are probed once.
    """
    planned_teachers = {run.identity: run.spec.arch for run in runs if run.spec.role == "teacher"}
    probed: dict[tuple[object, ...], Cost] = {}
    costs = []
    for run in todo:
        spec = run.spec
        archs = {}
        for role, identity in spec.teachers.items():
            planned = planned_teachers.get(identity)
            archs[role] = planned or cards.find_card(store, identity).arch
        key = (spec.role, spec.dataset, spec.arch, spec.method, tuple(archs.items()))
        if key not in probed:
            probed[key] = try_cost(run, archs, device)
        costs.append(probed[key])
    return costs


def seconds_side_by_side(runs: Iterable[tuple[PlannedRun, Cost]], workers: int) -> float:
    """Return about how long runs take on so many workers: teachers come before students."""
    stages = {"teacher": [0.0], "student": [0.0]}
    for run, cost in runs:
        stages[run.spec.role].append(cost.train + cost.evaluate)
    return sum(max(sum(seconds) / workers, *seconds) for seconds in stages.values())


def try_cost(run: PlannedRun, teacher_archs: dict[str, str], device: torch.device) -> Cost:
    """Return the cost of a run; where its step fails a warning says so, and the cost is unknown."""
    spec = run.spec
    sizes = split_sizes(spec.dataset, spec.limit_train, spec.limit_test)
    try:
        with outside.contained():
            return measure_cost(run, teacher_archs, sizes, device)
    # A method may raise anything. Its run says what; others follow.
    except Exception as error:
        reason = methods.describe_error(error)
        LOGGER.warning(f"warning: {run.label} cannot be timed: {reason}")
        return UNKNOWN


def measure_cost(
    run: PlannedRun, teacher_archs: dict[str, str], sizes: tuple[int, int], device: torch.device
) -> Cost:
    """Time one step on random weights and scale it to the whole run.

    Args:
        run: the run to estimate.
        teacher_archs: the architecture of the teacher of each role.
        sizes: the numbers of training and test images.
        device: where the run will be made.
    """
    spec = run.spec
    num_train, num_test = sizes
    info = datasets.get(spec.dataset)
    student = models.build(spec.arch, info).to(device)
    frozen = {role: models.build(arch, info).to(device) for role, arch in teacher_archs.items()}
    module = TrainingModule(run.method, student, frozen, num_train).to(device)
    module.train()
    time_step(module, spec, WARMUP_IMAGES, device)
    seconds, passes = time_step(module, spec, PROBE_IMAGES, device)
    seconds_per_image = seconds / PROBE_IMAGES
    if seconds < SLOW_STEP:
        size = min(spec.training.batch, num_train)
        seconds_per_image = time_step(module, spec, size, device)[0] / size
    train = spec.training.epochs * num_train * seconds_per_image
    evaluate = evaluation_passes(run, num_test) * time_inference(student, info.shape, device)
    return Cost(train, evaluate, passes)


def evaluation_passes(run: PlannedRun, num_test: int) -> int:
    """Return how many images pass the student in a run's evaluation, by the catalogue."""
    spec = run.spec
    gradient_passes = sum(ATTACKS[name].passes * num_test for name in spec.attacks if name != "aa")
    # best.pt, last.pt and the averages of the weights are evaluated.
    passes = (2 + len(spec.training.averaging)) * gradient_passes
    attacked = sum(count_attacked(spec, name, num_test) for name in spec.full_checkpoints)
    return passes + ATTACKS["aa"].passes * attacked


def time_step(
    module: TrainingModule, spec: Spec, size: int, device: torch.device
) -> tuple[float, float]:
    """Time one loss and its gradient on `size` random images.

    Returns: seconds, and forward passes of the student per image.
    """
    batch = random_batch(spec, spec.dataset, size, device)
    counts: list[int] = []

    def count_images(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(len(inputs[0]))

    # A method may ask for the features alone, so the first layer with weights counts.
    stem = next(layer for layer in module.student.modules() if hasattr(layer, "weight"))
    hook = stem.register_forward_pre_hook(count_images)
    seconds = time_loss_and_gradient(module, batch, device)
    hook.remove()
    return seconds, sum(counts) / size


def random_batch(protocol: Spec | Suite, dataset: str, size: int, device: torch.device) -> Batch:
    """Return `size` random images and labels as a batch of the first epoch."""
    info = datasets.get(dataset)
    x = torch.rand(size, *info.shape, device=device)
    y = torch.randint(info.num_classes, (size,), device=device)
    index = torch.arange(size, device=device)
    budget = Budget(protocol.eps, protocol.inner_step, protocol.inner_steps, protocol.norm)
    return Batch(x, y, index, 0, protocol.training.epochs, size, budget)


def time_loss_and_gradient(module: TrainingModule, batch: Batch, device: torch.device) -> float:
    """Return the seconds of a batch's attack, loss and gradient."""
    start = synchronised_time(device)
    terms = module(batch, module.attack(batch))
    torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    return synchronised_time(device) - start


@torch.no_grad()
def time_inference(net: Net, shape: tuple[int, ...], device: torch.device) -> float:
    """Return the seconds of a forward pass per image."""
    net.eval()
    x = torch.rand(INFERENCE_IMAGES, *shape, device=device)
    net(x[:PROBE_IMAGES])
    start = synchronised_time(device)
    net(x)
    return (synchronised_time(device) - start) / INFERENCE_IMAGES


def synchronised_time(device: torch.device) -> float:
    """Return the time once the device has done what it was given, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
