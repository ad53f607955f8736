"""Every usual obfuscation raises a flag, and honest models raise none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import Evaluation, evaluate
from attacks.result import Cost
from bench import data, models
from bench.datasets import DIGITS
from methods.base import Budget
from methods.inner import ce, pgd

EPS = 0.1
Task = tuple[Tensor, Tensor]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32),
        nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 10),
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolutional": convolutional,
    "resnet": lambda: models.build("resnet8-w8", DIGITS),
}


def fitted(make: Callable[[], nn.Module], robust: bool) -> nn.Module:
    """Trained on digits for some seconds, adversarially if `robust`; in eval mode."""
    torch.manual_seed(0)
    digits = data.load("digits", "")
    x, y = data.to_float(digits.train.x), digits.train.y
    net = make()
    steps = 240
    optimiser = torch.optim.Adam(net.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, steps)
    for step in range(steps):
        rows = torch.randint(len(x), (64,))
        images, labels = x[rows], y[rows]
        if robust and step > 20:
            images = pgd(net, images, ce(labels), Budget(EPS, EPS / 2, 3))
        net.train()
        optimiser.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimiser.step()
        rate.step()
    return net.eval()


@pytest.fixture(scope="module")
def task() -> Task:
    digits = data.load("digits", "", limit_test=64)
    return data.to_float(digits.test.x), digits.test.y


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return fitted(convolutional, robust=True)


class Changed(nn.Module):
    """A network with something before it and something behind it."""

    def __init__(
        self, net: nn.Module, before: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.net, self.before, self.behind = net, before, behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.net(self.before(x)))


def same(x: Tensor) -> Tensor:
    return x


def of_the_batch(x: Tensor) -> Tensor:
    """BatchNorm that never left its training mode."""
    return F.batch_norm(x, None, None, training=True)


PART = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.1
PLANTED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "logits x1000": (same, lambda z: 1000 * z, "zero-gradient-cross-entropy"),
    "quantised input": (lambda x: (x * 8).round() / 8, same, "zero-gradient-margin"),
    "noise": (lambda x: x + 0.1 * torch.randn_like(x), same, "randomised-output"),
    "softmax": (same, lambda z: z.softmax(dim=1), "softmax-output"),
    "softmax x20": (same, lambda z: (20 * z).softmax(dim=1), "softmax-output"),
    "softmax of x20, scaled": (
        same,
        lambda z: 20 * (20 * z).softmax(dim=1),
        "gradient-not-faithful",
    ),
    "shattered gradients": (lambda x: x + 0.02 * torch.sin(400 * x), same, "gradient-not-faithful"),
    "BatchNorm of the batch": (of_the_batch, same, "batch-dependent-output"),
    "a tenth of the pixels without gradient": (
        lambda x: torch.where(PART, x.detach(), x),
        same,
        "gradient-not-faithful",
    ),
    "gradient of NaN": (lambda x: x.sqrt().square(), same, "gradient-not-finite"),
    "dropout left on": (lambda x: F.dropout(x, 0.2, training=True), same, "randomised-output"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_obfuscation_is_flagged(name: str, robust: nn.Module, task: Task) -> None:
    before, behind, flag = PLANTED[name]
    found = evaluate(Changed(robust, before, behind), *task, ("fgsm",), eps=EPS)
    assert flag in found.flags, found.flags


def test_a_branch_without_gradient_is_flagged(robust: nn.Module, task: Task) -> None:
    other = fitted(mlp, robust=False)
    found = evaluate(Changed(robust, same, same), *task, ("fgsm",), eps=EPS)
    assert found.flags == {}

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = robust, other

        def forward(self, x: Tensor) -> Tensor:
            return 0.65 * self.first(x) + 0.35 * self.second(x.detach())

    assert "gradient-not-faithful" in evaluate(Both(), *task, ("fgsm",), eps=EPS).flags


def test_training_mode_is_flagged_and_not_used(robust: nn.Module, task: Task) -> None:
    want = evaluate(robust, *task, ("fgsm",), eps=EPS)
    try:
        found = evaluate(robust.train(), *task, ("fgsm",), eps=EPS)
    finally:
        robust.eval()
    assert list(found.flags) == ["training-mode"]
    assert torch.equal(found.robust["fgsm"], want.robust["fgsm"])


@pytest.mark.parametrize("adversarial", [True, False], ids=["robust", "standard"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS), ("L2", 0.5)])
def test_an_honest_model_raises_none(
    arch: str, adversarial: bool, norm: str, eps: float, task: Task
) -> None:
    net = fitted(ARCHITECTURES[arch], adversarial)
    names = ("fgsm", "pgd10", "pgd20", "pgd50") if norm == "Linf" else ("pgd10", "pgd50")
    found = evaluate(net, *task, names, eps=eps, norm=norm)
    assert found.flags == {}
    assert found.clean.float().mean() > 0.9


class Modes(nn.Module):
    """A linear network whose output in training mode is given."""

    def __init__(self, output: Callable[[Tensor], object], noise: float = 0.0) -> None:
        super().__init__()
        self.net, self.output, self.noise = (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            output,
            noise,
        )

    def forward(self, x: Tensor) -> object:
        logits = self.net(x + self.noise * torch.randn_like(x))
        return self.output(logits) if self.training else logits


@pytest.mark.parametrize(
    ("output", "noise", "flagged"),
    [
        (same, 0.0, False),
        (same, 0.1, False),  # random in either mode
        (lambda z: z + 1, 0.0, True),
        (lambda z: (z, z), 0.0, True),
        (nn.BatchNorm1d(10), 0.0, True),  # of one image it fails
    ],
)
def test_modes_that_change_the_output(
    output: Callable[[Tensor], object], noise: float, flagged: bool, task: Task
) -> None:
    x, y = task
    net = Modes(output, noise).train()
    found = evaluate(net, x[:1], y[:1], ("pgd10",), eps=EPS, probes=1)
    assert ("training-mode" in found.flags) == flagged


def test_modes_are_not_taken_from_the_record(task: Task, tmp_path: Path) -> None:
    net = Modes(lambda z: z + 1)
    flags = [
        evaluate(net.train(training), *task, ("fgsm",), eps=EPS, record=tmp_path / "v.npz").flags
        for training in (False, True, False)
    ]
    assert ["training-mode" in found for found in flags] == [False, True, False]


def test_logits_without_gradients_may_be_others(task: Task) -> None:
    """Which has nothing to do with the batch."""

    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits * 1.1 if torch.is_grad_enabled() else logits

    assert "batch-dependent-output" not in evaluate(Switch(), *task, ("fgsm",), eps=EPS).flags


def test_flags_do_not_depend_on_what_ran_before(robust: nn.Module, task: Task) -> None:
    noisy = Changed(robust, PLANTED["noise"][0], same)
    torch.manual_seed(1)
    first = evaluate(noisy, *task, ("fgsm",), eps=EPS).flags
    torch.manual_seed(2)
    assert evaluate(noisy, *task, ("fgsm",), eps=EPS).flags == first


def verdicts(**standing: int) -> Evaluation:
    """An evaluation of 100 images in which so many stand under each attack."""
    robust = {name: torch.arange(100) < count for name, count in standing.items()}
    return Evaluation(torch.ones(100, dtype=torch.bool), robust)


@pytest.mark.parametrize(
    ("found", "flag"),
    [
        (verdicts(fgsm=50, pgd20=53), "one-step-beats-many"),
        (verdicts(pgd10=50, pgd50=53), "more-steps-weaker"),
        (verdicts(pgd20=50, aa=39), "pgd-far-above-aa"),
        (verdicts(pgd20=50, aa=41), None),
        (verdicts(fgsm=50, pgd20=52, pgd10=49, pgd50=51), None),
        (verdicts(**{"pgd20": 50, "pgd20@teacher": 40}), "transfer-beats-white-box"),
        (verdicts(**{"pgd20": 50, "pgd20@teacher": 47}), None),
    ],
)
def test_verdicts_that_contradict_each_other(found: Evaluation, flag: str | None) -> None:
    assert list(found.contradictions()) == ([flag] if flag else [])


@pytest.mark.parametrize(("square", "flagged"), [(4, True), (3, False)])
def test_square_after_the_white_box_attacks(square: int, flagged: bool) -> None:
    found = verdicts(aa=40)
    found.cost["aa"] = Cost(fooled={"apgd-ce": 50, "apgd-t": 8, "fab-t": 0, "square": square})
    assert ("black-box-beats-white-box" in found.contradictions()) == flagged
