"""Transfer to other tasks: known answers of probes and heads, other formats, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_data import make_toy
from torch import Tensor, nn

from bench import datasets, models
from bench.analysis.measures import other_tasks
from bench.analysis.measures.findings import GapError
from bench.analysis.measures.other_tasks import FITS, Task, Transferred
from leaderboards.schema.analysis import TASK_MODES, TASK_VIEWS, task_name
from methods.base import Net
from methods.inner import Budget

BUDGET = Budget(0.15, 0.075, 5)
CPU = torch.device("cpu")


class PixelNet(Net):
    """A network whose features are the pixels, times a weight for each."""

    def __init__(self, width: int = 4) -> None:
        super().__init__((0.0,), (1.0,))
        self.width, self.num_classes = width, 2
        self.weight = nn.Parameter(torch.ones(width))

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.weight


class RoundingNet(PixelNet):
    """A network that sees a pixel as dark or bright, so that small changes do not reach it."""

    def features(self, x: Tensor) -> Tensor:
        return super().features((x > 0.5).float() + 0 * x)


class ConstantNet(PixelNet):
    """A network whose features are the same for all images."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(0 * x) + 0.3


class BrokenNet(PixelNet):
    """A network whose features are not finite."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * torch.nan


def pixel_task(images: int = 40) -> Task:
    """Four classes of 2x2 images: which pixel is bright, 0.9 to 1, others are 0 to 0.1."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        y = torch.arange(images) % 4
        x = 0.1 * torch.rand(images, 4, generator=generator)
        x[range(images), y] += 0.9
        return x.view(-1, 1, 2, 2), y

    return Task("pixels", 4, *draw(), *draw())


def resnet(dataset: str = "digits-0-4", arch: str = "resnet8-w4") -> Net:
    torch.manual_seed(0)
    return models.build(arch, datasets.get(dataset)).eval()


def digits_task() -> Task:
    return other_tasks.load_task("digits-5-9", "", (1, 8, 8), CPU)


def fitted(student: Net, mode: str, task: Task) -> Transferred:
    torch.manual_seed(0)
    width = other_tasks.feature_width(student, (task.x.shape[1], *task.x.shape[2:]))
    net = Transferred(student, width, task.num_classes).eval()
    FITS[mode](net, task, BUDGET)
    return net


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on few images, one epoch."""
    monkeypatch.setattr(other_tasks, "EPOCHS", 1)
    monkeypatch.setattr(other_tasks, "MAX_TRAIN", 128)
    monkeypatch.setattr(other_tasks, "MAX_TEST", 40)


# Known answers


@pytest.mark.parametrize(("eps", "robust"), [(0.1, 1.0), (0.6, 0.0)])
def test_a_trunk_that_separates_the_classes_has_a_perfect_probe(eps: float, robust: float) -> None:
    """Pixels differ by 0.8 at least: half of it on each of two pixels is what an attack needs."""
    findings = other_tasks.measure_task(PixelNet(), 4, pixel_task(), eps, "Linf")
    assert findings.numbers[task_name("pixels", "probe", "clean")] == 1
    assert findings.numbers[task_name("pixels", "probe", "pgd20")] == robust


def test_the_probe_decides_as_scikit_learn_does() -> None:
    student, task = resnet(arch="resnet8-w8"), digits_task()
    net = fitted(student, "probe", task)
    with torch.no_grad():
        features = student.features(task.x).double().numpy()
        test_features = student.features(task.test_x).double().numpy()
        decisions = net(task.test_x).argmax(dim=1)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    expected = model.fit(features, task.y.numpy()).predict(test_features)
    assert decisions.tolist() == expected.tolist()
    assert 0.5 < (decisions == task.test_y).float().mean() < 1


def test_the_probe_of_two_classes_decides_as_scikit_learn_does() -> None:
    task = pixel_task()
    rows, test_rows = task.y < 2, task.test_y < 2
    two = Task("two", 2, task.x[rows], task.y[rows], task.test_x[test_rows], task.test_y[test_rows])
    net = fitted(PixelNet(), "probe", two)
    assert torch.equal(net(two.test_x).argmax(dim=1), two.test_y)


def test_a_trunk_that_ignores_perturbations_is_as_robust_as_accurate() -> None:
    findings = other_tasks.measure_task(RoundingNet(), 4, pixel_task(), 0.15, "Linf")
    assert findings.gaps == {}
    for mode in TASK_MODES:
        clean, robust = (findings.numbers[task_name("pixels", mode, view)] for view in TASK_VIEWS)
        assert clean == robust == 1


@pytest.mark.parametrize("mode", FITS)
def test_only_whole_modes_change_the_trunk(mode: str, short: None) -> None:
    student = resnet()
    net = fitted(student, mode, digits_task())
    before, after = student.state_dict(), net.trunk.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if mode.startswith("whole"):
        assert changed >= {"conv1.weight", "bn1.running_mean", "layer3.0.conv2.weight"}
        # The head of the student is no part of what is trained.
        assert not changed & {"mean", "std", "linear.weight", "linear.bias"}
    else:
        assert changed == set()


def test_training_on_adversarial_examples_makes_robust() -> None:
    """One pixel tells the classes apart at this eps, the others do only without an attack."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.rand(400, 4, generator=generator) * 0.05 + 0.4
    x[:, 0] += 0.4 * y
    x[:, 1:] += 0.1 * y[:, None]
    task = Task("two", 2, x.view(-1, 1, 2, 2), y, x.view(-1, 1, 2, 2), y)
    findings = other_tasks.measure_task(PixelNet(), 4, task, 0.15, "Linf")
    robust = {mode: findings.numbers[task_name("two", mode, "pgd20")] for mode in TASK_MODES}
    assert robust["head_adv"] > robust["head"]
    assert robust["whole_adv"] > robust["whole"]


# The student is left alone, and numbers repeat


def test_a_measurement_repeats_and_leaves_everything_as_it_was(short: None) -> None:
    student = resnet()
    next(student.parameters()).requires_grad_(False)
    student.train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    wanted = [value.requires_grad for value in student.parameters()]
    random_state = torch.get_rng_state()
    first = other_tasks.measure(student, "digits-0-4", "", 0.15)
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.manual_seed(7)
    assert other_tasks.measure(student, "digits-0-4", "", 0.15) == first
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert [value.requires_grad for value in student.parameters()] == wanted
    assert all(value.grad is None for value in student.parameters())
    assert all(module.training for module in student.modules())
    names = [task_name("digits-5-9", mode, view) for mode in FITS for view in TASK_VIEWS]
    assert [*first.numbers] == names
    assert (first.gaps, [*FITS]) == ({}, [*TASK_MODES])


def test_the_norm_is_that_of_the_suite(short: None) -> None:
    findings = other_tasks.measure(resnet(), "digits-5-9", "", 0.6, "L2")
    assert len(findings.numbers) == 10
    assert findings.numbers[task_name("digits-0-4", "probe", "pgd20")] < 1


# Other formats


def test_cifar10_students_are_put_to_what_is_there(
    short: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(other_tasks, "MAX_TRAIN", 200)
    for name in ("cifar100", "stl10", "svhn"):
        make_toy(name, monkeypatch).write_files(tmp_path)
    student = resnet("cifar10", "resnet8-w4-s2")
    findings = other_tasks.measure(student, "cifar10", tmp_path, 8 / 255)
    expected = {
        task_name(target, mode, view)
        for target in ("cifar100", "stl10", "svhn")
        for mode in TASK_MODES
        for view in TASK_VIEWS
    }
    assert (set(findings.numbers), findings.gaps) == (expected, {})


def test_targets_without_files_are_gaps(
    short: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_toy("svhn", monkeypatch).write_files(tmp_path)
    findings = other_tasks.measure(resnet("cifar10"), "cifar10", tmp_path, 8 / 255)
    assert set(findings.gaps) == {"tasks/accuracy/cifar100", "tasks/accuracy/stl10"}
    assert "data fetch stl10" in findings.gaps["tasks/accuracy/stl10"]
    assert {name.split("/")[3] for name in findings.numbers} == {"svhn"}


def test_images_of_another_size_are_averaged() -> None:
    board = (torch.arange(96)[:, None] + torch.arange(96)) % 2
    x = board.float().expand(2, 1, 96, 96)
    resized = other_tasks.fit_images(x, (3, 32, 32))
    assert resized.shape == (2, 3, 32, 32)
    # Without antialiasing single pixels would be picked: 0 or 1.
    assert (resized - 0.5).abs().max() < 0.1
    assert torch.equal(other_tasks.fit_images(x, (1, 96, 96)), x)
    with pytest.raises(GapError, match="3 channels, the student takes 1"):
        other_tasks.fit_images(resized, (1, 32, 32))


# Bad input


def test_features_of_no_variance_are_gaps_of_frozen_trunks() -> None:
    findings = other_tasks.measure_task(ConstantNet(), 4, pixel_task(), 0.15, "Linf")
    frozen = ("probe", "head", "head_adv")
    assert findings.gaps == {
        f"tasks/accuracy/pixels/{mode}": "its features have no variance" for mode in frozen
    }
    assert findings.numbers[task_name("pixels", "whole", "clean")] == 0.25


def test_features_that_are_not_finite_are_gaps() -> None:
    findings = other_tasks.measure_task(BrokenNet(), 4, pixel_task(), 0.15, "Linf")
    assert findings.numbers == {}
    assert len(findings.gaps) == len(TASK_MODES)
    assert all("\n" not in reason for reason in findings.gaps.values())


def test_one_image_a_class_is_enough() -> None:
    findings = other_tasks.measure_task(PixelNet(), 4, pixel_task(images=4), 0.05, "Linf")
    assert (len(findings.numbers), findings.gaps) == (10, {})
    assert findings.numbers[task_name("pixels", "probe", "clean")] == 1


def test_a_class_without_an_image_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_tasks, "MAX_TRAIN", 4)
    findings = other_tasks.measure(resnet(), "digits-0-4", "", 0.15)
    (reason,) = findings.gaps.values()
    assert "of its classes have no image among the first 4" in reason


def test_a_network_without_features_is_refused() -> None:
    with pytest.raises(GapError, match="the network has no features: NotImplementedError"):
        other_tasks.measure(Net((0.0,), (1.0,)), "digits-0-4", "", 0.15)
    with pytest.raises(GapError, match=r"no other task is declared for digits"):
        other_tasks.measure(resnet("digits"), "digits", "", 0.15)


def test_features_of_another_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PixelNet, "features", lambda net, x: x)
    with pytest.raises(GapError, match=r"shape \(2, 1, 8, 8\), not \(N, width\)"):
        other_tasks.measure(PixelNet(), "digits-0-4", "", 0.15)
