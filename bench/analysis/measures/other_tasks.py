"""Transfer to other tasks: accuracy on other classes, clean and attacked end to end.

A copy of the student gets a new linear head. Its trunk is frozen or fine-tuned, on clean images or
on adversarial examples, as in Shafahi et al., "Adversarially Robust Transfer Learning", ICLR 2020,
and Salman et al., "Do Adversarially Robust ImageNet Models Transfer Better?", NeurIPS 2020. All
students get the same images, epochs and random numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import evaluate
from attacks.isolation import isolated_state
from bench import datasets
from bench.analysis.measures.findings import Findings, GapError
from bench.datasets.augmentation import to_float
from bench.datasets.loading import load_data
from bench.system.errors import BenchError, one_line
from leaderboards.schema.analysis import TASK_MODES
from methods.base import Net
from methods.inner import Budget, ce, mode, pgd

# The other tasks of a data set; the first is there without other files.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "digits-0-4": ("digits-5-9",),
    "digits-5-9": ("digits-0-4",),
    "cifar10-0-4": ("cifar10-5-9",),
    "cifar10-5-9": ("cifar10-0-4",),
    "cifar10": ("cifar100", "stl10", "svhn"),
    "cifar100": ("cifar10", "stl10", "svhn"),
}
# First images of the target's splits.
MAX_TRAIN, MAX_TEST = 2_000, 500
# Training of heads and whole networks: SGD, one cycle.
EPOCHS, BATCH, MOMENTUM = 8, 128, 0.9
# A head alone starts from nothing and bears a larger rate.
LR, HEAD_LR = 0.2, 1.0
INNER_STEPS = 5
SEED = 0
ATTACK = "pgd20"
# Features whose range is a smaller share of their size differ by rounding alone.
MIN_RANGE = 1e-6


@dataclass(frozen=True)
class Task:
    """Images of a target, (N, C, H, W) in [0, 1], as the student takes them, and labels: (N,)."""

    name: str
    num_classes: int
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


class Transferred(Net):
    """A copy of a network with a new linear head on its features."""

    def __init__(self, student: Net, width: int, num_classes: int) -> None:
        # The copy normalises.
        super().__init__((0.0,), (1.0,))
        self.width, self.num_classes = width, num_classes
        self.fold_batchnorm = student.fold_batchnorm
        self.trunk = copy.deepcopy(student)
        self.linear = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk.features(x)

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.linear(f)
        return logits


def measure(
    student: Net, source: str, data_root: str | Path, eps: float, norm: str = "Linf"
) -> Findings:
    """Put a student to the other tasks of the data set `source` that it was trained on.

    The student is left as it is. A task whose data is not below `data_root` is a gap, as is a mode
    that cannot be fitted.

    Args:
        eps: of the source's suite, in `norm`, for training and evaluation.
    Raises:
        GapError: for a data set without another task, or a network without features.
    """
    shape = datasets.get(source).shape
    if source not in TARGETS:
        raise GapError(f"no other task is declared for {source}")
    width = feature_width(student, shape)
    findings = Findings()
    for target in TARGETS[source]:
        try:
            task = load_task(target, data_root, shape, device_of(student))
        except (BenchError, GapError) as error:
            findings.gaps[f"tasks/accuracy/{target}"] = str(error)
            continue
        findings.update(measure_task(student, width, task, eps, norm))
    return findings


def device_of(net: nn.Module) -> torch.device:
    """Return the device of a network's parameters."""
    return next((value.device for value in net.parameters()), torch.device("cpu"))


@torch.no_grad()
def feature_width(student: Net, shape: tuple[int, int, int]) -> int:
    """Return the number of a network's features. Raise GapError where it has none."""
    x = torch.zeros(2, *shape, device=device_of(student))
    try:
        with mode(student, training=False):
            features = student.features(x)
    # A network of others may raise anything.
    except Exception as error:
        fault = one_line(error) or type(error).__name__
        raise GapError(f"the network has no features: {fault}") from error
    if features.ndim != 2 or len(features) != len(x):
        raise GapError(f"its features have the shape {tuple(features.shape)}, not (N, width)")
    return features.shape[1]


def load_task(
    target: str, data_root: str | Path, shape: tuple[int, int, int], device: torch.device
) -> Task:
    """Load a target's first images in the shape (C, H, W).

    Raise BenchError where its files are not there, GapError for images that cannot be used.
    """
    data = load_data(target, data_root)
    y, test_y = data.train.y[:MAX_TRAIN].to(device), data.test.y[:MAX_TEST].to(device)
    missing = int((y.bincount(minlength=data.info.num_classes) == 0).sum())
    if missing:
        raise GapError(f"{missing} of its classes have no image among the first {len(y):,}")
    x = fit_images(to_float(data.train.x[:MAX_TRAIN].to(device)), shape)
    test_x = fit_images(to_float(data.test.x[:MAX_TEST].to(device)), shape)
    return Task(target, data.info.num_classes, x, y, test_x, test_y)


def fit_images(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Resize images to a shape (C, H, W); grey ones get the channels of colour.

    Raise GapError for colour images where grey ones are wanted.
    """
    channels, *size = shape
    if x.shape[1] not in (1, channels):
        raise GapError(f"its images have {x.shape[1]} channels, the student takes {channels}")
    x = x.expand(-1, channels, -1, -1)
    if [*x.shape[2:]] == size:
        return x.contiguous()
    resized = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def measure_task(student: Net, width: int, task: Task, eps: float, norm: str) -> Findings:
    """Fit a copy of the student to a task in each mode, and attack it."""
    # 2.5 eps / steps, the rule of Madry's group.
    budget = Budget(eps, 2.5 * eps / INNER_STEPS, INNER_STEPS, norm)  # type: ignore[arg-type]
    findings = Findings()
    for name in TASK_MODES:
        try:
            with isolated_state(SEED):
                net = Transferred(student, width, task.num_classes).to(task.x.device).eval()
                FITS[name](net, task, budget)
            accuracies = attack_accuracies(net, task, eps, norm)
        except GapError as error:
            findings.gaps[f"tasks/accuracy/{task.name}/{name}"] = str(error)
            continue
        for view, accuracy in accuracies.items():
            findings.add(accuracy, "tasks", "accuracy", task.name, name, view)
    return findings


def attack_accuracies(net: Net, task: Task, eps: float, norm: str) -> dict[str, float]:
    """Return accuracy on the test images, clean and attacked. Raise GapError for no verdict."""
    try:
        result = evaluate(
            net, task.test_x, task.test_y, [ATTACK], eps=eps, norm=norm, search="exact", probes=0
        )
    # Logits or gradients that are not finite.
    except (ValueError, RuntimeError) as error:
        raise GapError(one_line(error)) from error
    accuracy = result.accuracy()
    return {view: accuracy[view] for view in ("clean", ATTACK)}


def fit_probe(net: Transferred, task: Task, budget: Budget) -> None:
    """Fit scikit-learn's logistic regression to the features of clean images, as the new head."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features = trunk_features(net, task.x).cpu().double().numpy()
    # It converges on standardised features; the head undoes that.
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(max_iter=1_000)
    model.fit(scaler.transform(features), task.y.cpu().numpy())
    weight = torch.from_numpy(model.coef_ / scaler.scale_)
    bias = torch.from_numpy(model.intercept_) - weight @ torch.from_numpy(scaler.mean_)
    with torch.no_grad():
        # Two classes have one row of coefficients, of the second against the first.
        net.linear.weight.zero_()[-len(weight) :] = weight
        net.linear.bias.zero_()[-len(bias) :] = bias


def train(net: Transferred, task: Task, budget: Budget, *, whole: bool, adversarial: bool) -> None:
    """Train the new head, or the whole network, on clean images or adversarial examples.

    A frozen trunk stays in eval mode. The inner attack, PGD against the network as it is, is in
    eval mode too, as in the training of students.
    """
    if not whole:
        trunk_features(net, task.x[:BATCH])
    net.trunk.requires_grad_(whole)
    count = len(task.y)
    batches = -(-count // BATCH)
    trainable = [value for value in net.parameters() if value.requires_grad]
    rate = LR if whole else HEAD_LR
    optimizer = torch.optim.SGD(trainable, rate, MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=EPOCHS * batches)
    for _ in range(EPOCHS):
        # Of nearly the same size: BatchNorm cannot train on a last batch of one image.
        for rows in torch.randperm(count).to(task.y.device).tensor_split(batches):
            x, y = task.x[rows], task.y[rows]
            adv = pgd(net, x, ce(y), budget) if adversarial else x
            with mode(net, training=whole):
                loss = F.cross_entropy(net(adv), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


@torch.no_grad()
def trunk_features(net: Transferred, x: Tensor) -> Tensor:
    """Return the features of images. Raise GapError if no head could use them."""
    features = torch.cat([net.features(images) for images in torch.split(x, 250)])
    if not features.isfinite().all():
        raise GapError("its features are not finite")
    if (features.amax(0) - features.amin(0)).amax() <= MIN_RANGE * features.abs().amax():
        raise GapError("its features have no variance")
    return features


# How a copy is fitted, by mode.
FITS: Mapping[str, Callable[[Transferred, Task, Budget], None]] = {
    "probe": fit_probe,
    "head": partial(train, whole=False, adversarial=False),
    "head_adv": partial(train, whole=False, adversarial=True),
    "whole": partial(train, whole=True, adversarial=False),
    "whole_adv": partial(train, whole=True, adversarial=True),
}
