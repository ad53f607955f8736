"""Sanity flags: common obfuscations raise one, honest models raise none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import Evaluation, evaluate
from attacks.result import Cost
from bench import models
from bench.datasets import DIGITS, augmentation, loading
from methods.base import Budget
from methods.inner import ce, pgd

EPS = 0.1
Task = tuple[Tensor, Tensor]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 10),
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolutional": convolutional,
    "resnet": lambda: models.build("resnet8-w8", DIGITS),
}


def fitted(make: Callable[[], nn.Module], robust: bool) -> nn.Module:
    """Trained on digits for some seconds, adversarially if `robust`; in eval mode."""
    torch.manual_seed(0)
    digits = loading.load_data("digits", "")
    x, y = augmentation.to_float(digits.train.x), digits.train.y
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
    digits = loading.load_data("digits", "", limit_test=64)
    return augmentation.to_float(digits.test.x), digits.test.y


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return fitted(convolutional, robust=True)


class Wrapped(nn.Module):
    """A network between two functions, of its images and of its logits."""

    def __init__(
        self, net: nn.Module, before: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.net, self.before, self.behind = net, before, behind

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.net(self.before(x)))


def identity(x: Tensor) -> Tensor:
    return x


def normalise_batch(x: Tensor) -> Tensor:
    """BatchNorm in training mode."""
    return F.batch_norm(x, None, None, training=True)


PART = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.1
OBFUSCATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str]] = {
    "logits x1000": (identity, lambda z: 1000 * z, "zero-gradient-cross-entropy"),
    "quantised input": (lambda x: (x * 8).round() / 8, identity, "zero-gradient-margin"),
    "noise": (lambda x: x + 0.1 * torch.randn_like(x), identity, "randomised-output"),
    "softmax": (identity, lambda z: z.softmax(dim=1), "softmax-output"),
    "softmax x20": (identity, lambda z: (20 * z).softmax(dim=1), "softmax-output"),
    "softmax of x20, scaled": (
        identity,
        lambda z: 20 * (20 * z).softmax(dim=1),
        "gradient-not-faithful",
    ),
    "shattered gradients": (
        lambda x: x + 0.02 * torch.sin(400 * x),
        identity,
        "gradient-not-faithful",
    ),
    "BatchNorm of the batch": (normalise_batch, identity, "batch-dependent-output"),
    "a tenth of the pixels without gradient": (
        lambda x: torch.where(PART, x.detach(), x),
        identity,
        "gradient-not-faithful",
    ),
    "gradient of NaN": (lambda x: x.sqrt().square(), identity, "gradient-not-finite"),
    "dropout left on": (lambda x: F.dropout(x, 0.2, training=True), identity, "randomised-output"),
}


@pytest.mark.parametrize("name", OBFUSCATIONS)
def test_an_obfuscation_is_flagged(name: str, robust: nn.Module, task: Task) -> None:
    before, behind, flag = OBFUSCATIONS[name]
    result = evaluate(Wrapped(robust, before, behind), *task, ("fgsm",), eps=EPS)
    assert flag in result.flags, result.flags


def test_a_branch_without_gradient_is_flagged(robust: nn.Module, task: Task) -> None:
    second = fitted(mlp, robust=False)
    result = evaluate(Wrapped(robust, identity, identity), *task, ("fgsm",), eps=EPS)
    assert result.flags == {}

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = robust, second

        def forward(self, x: Tensor) -> Tensor:
            return 0.65 * self.first(x) + 0.35 * self.second(x.detach())

    assert "gradient-not-faithful" in evaluate(Ensemble(), *task, ("fgsm",), eps=EPS).flags


def test_training_mode_is_flagged_and_not_used(robust: nn.Module, task: Task) -> None:
    expected = evaluate(robust, *task, ("fgsm",), eps=EPS)
    try:
        result = evaluate(robust.train(), *task, ("fgsm",), eps=EPS)
    finally:
        robust.eval()
    assert list(result.flags) == ["training-mode"]
    assert torch.equal(result.robust["fgsm"], expected.robust["fgsm"])


@pytest.mark.parametrize("adversarial", [True, False], ids=["robust", "standard"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS), ("L2", 0.5)])
def test_an_honest_model_raises_no_flag(
    arch: str, adversarial: bool, norm: str, eps: float, task: Task
) -> None:
    net = fitted(ARCHITECTURES[arch], adversarial)
    names = ("fgsm", "pgd10", "pgd20", "pgd50") if norm == "Linf" else ("pgd10", "pgd50")
    result = evaluate(net, *task, names, eps=eps, norm=norm)
    assert result.flags == {}
    assert result.clean.float().mean() > 0.9


class TrainingOutput(nn.Module):
    """A linear network with another output in training mode."""

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
        (identity, 0.0, False),
        # Random in either mode.
        (identity, 0.1, False),
        (lambda z: z + 1, 0.0, True),
        (lambda z: (z, z), 0.0, True),
        # It fails on one image.
        (nn.BatchNorm1d(10), 0.0, True),
    ],
)
def test_modes_that_change_the_output(
    output: Callable[[Tensor], object], noise: float, flagged: bool, task: Task
) -> None:
    x, y = task
    net = TrainingOutput(output, noise).train()
    result = evaluate(net, x[:1], y[:1], ("pgd10",), eps=EPS, probes=1)
    assert ("training-mode" in result.flags) == flagged


def test_modes_are_not_read_from_the_verdict_file(task: Task, tmp_path: Path) -> None:
    net = TrainingOutput(lambda z: z + 1)
    flags = [
        evaluate(net.train(training), *task, ("fgsm",), eps=EPS, record=tmp_path / "v.npz").flags
        for training in (False, True, False)
    ]
    assert ["training-mode" in names for names in flags] == [False, True, False]


def test_logits_that_depend_on_the_gradient_mode(task: Task) -> None:
    """They are no sign of dependence on the batch."""

    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits * 1.1 if torch.is_grad_enabled() else logits

    assert "batch-dependent-output" not in evaluate(Switch(), *task, ("fgsm",), eps=EPS).flags


def test_flags_do_not_depend_on_what_ran_before(robust: nn.Module, task: Task) -> None:
    noisy = Wrapped(robust, OBFUSCATIONS["noise"][0], identity)
    torch.manual_seed(1)
    first = evaluate(noisy, *task, ("fgsm",), eps=EPS).flags
    torch.manual_seed(2)
    assert evaluate(noisy, *task, ("fgsm",), eps=EPS).flags == first


def evaluation(**counts: int) -> Evaluation:
    """Return an evaluation of 100 images, by attack the number of robust ones."""
    robust = {name: torch.arange(100) < count for name, count in counts.items()}
    return Evaluation(torch.ones(100, dtype=torch.bool), robust)


@pytest.mark.parametrize(
    ("result", "flag"),
    [
        (evaluation(fgsm=50, pgd20=53), "one-step-beats-many"),
        (evaluation(pgd10=50, pgd50=53), "more-steps-weaker"),
        (evaluation(pgd20=50, aa=39), "pgd-far-above-aa"),
        (evaluation(pgd20=50, aa=41), None),
        (evaluation(fgsm=50, pgd20=52, pgd10=49, pgd50=51), None),
        (evaluation(**{"pgd20": 50, "pgd20@teacher": 40}), "transfer-beats-white-box"),
        (evaluation(**{"pgd20": 50, "pgd20@teacher": 47}), None),
    ],
)
def test_verdicts_that_contradict_each_other(result: Evaluation, flag: str | None) -> None:
    assert list(result.contradictions()) == ([flag] if flag else [])


@pytest.mark.parametrize(("square", "flagged"), [(4, True), (3, False)])
def test_square_after_the_white_box_attacks(square: int, flagged: bool) -> None:
    result = evaluation(aa=40)
    result.cost["aa"] = Cost(fooled={"apgd-ce": 50, "apgd-t": 8, "fab-t": 0, "square": square})
    assert ("black-box-beats-white-box" in result.contradictions()) == flagged
