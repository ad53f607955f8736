"""Legal models and callers unlike those of this project: the same verdicts, or one clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks import evaluate
from attacks.verdict_file import ForeignVerdictsError
from bench import models
from bench.datasets import CIFAR10, DIGITS

EPS = 8 / 255
Task = tuple[Tensor, Tensor]


def plain_net(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, 2, 1)
    return nn.Sequential(
        conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, classes)
    ).eval()


@pytest.fixture
def task() -> Task:
    """Images, with the predictions of the network `plain_net` as labels."""
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, plain_net()(x).argmax(dim=1)


class CustomForward(nn.Module):
    """The network `plain_net` with another forward pass."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.custom_forward = plain_net(), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.custom_forward(self, x)


def forward_in_place(self: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = self.net(x.mul_(2).sub_(1).add_(1).div_(2))  # type: ignore[operator]
    return logits


def forward_keeping_logits(self: nn.Module, x: Tensor) -> Tensor:
    self.logits = self.net(x)  # type: ignore[operator]
    return self.logits


@pytest.mark.parametrize("forward", [forward_in_place, forward_keeping_logits])
def test_models_that_write_into_their_images_or_keep_their_logits(
    forward: Callable[[nn.Module, Tensor], Tensor], task: Task, quick: str
) -> None:
    x, y = task
    names = ("fgsm", "pgd10", "cw_inf", quick)
    expected = evaluate(plain_net(), x, y, names, eps=EPS, probes=8)
    before = x.clone()
    result = evaluate(CustomForward(forward), x, y, names, eps=EPS, probes=8)
    assert torch.equal(x, before)
    assert result.flags == expected.flags
    # One image may differ: 2x - 1 rounds.
    for name in names:
        assert int((result.robust[name] != expected.robust[name]).sum()) <= 1, name


@pytest.mark.slow
@pytest.mark.parametrize("info", [CIFAR10, DIGITS], ids=lambda info: info.name)
@pytest.mark.parametrize("name", ["pgd10", "pgd20", "cw_l2", "apgd_ce", "square", "quick"])
def test_every_attack_in_l2_on_a_folded_network(name: str, info: object, quick: str) -> None:
    """Gradients come back channels-last."""
    torch.manual_seed(0)
    net = models.build("resnet8-w4", info).eval()  # type: ignore[arg-type]
    x = torch.rand(6, *info.shape)  # type: ignore[attr-defined]
    y = net(x).argmax(dim=1)
    result = evaluate(net, x, y, (name,), eps=0.5, norm="L2", probes=6)
    assert len(result.robust[name]) == 6


@pytest.mark.parametrize("name", ["pgd10", "tpgd", "cw_inf", "quick"])
def test_the_memory_format_of_images_changes_nothing(name: str, task: Task, quick: str) -> None:
    x, y = task
    formats = [x, x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT]
    verdicts = [
        evaluate(plain_net(), images, y, (name,), eps=EPS, probes=0).robust[name]
        for images in formats
    ]
    assert all(torch.equal(verdicts[0], verdict) for verdict in verdicts)


def forward_noisy(self: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = self.net(x + 0.3 * torch.randn_like(x))  # type: ignore[operator]
    return logits


def test_verdicts_on_a_randomised_model_do_not_depend_on_what_ran_before(
    task: Task, tmp_path: Path
) -> None:
    net, names = CustomForward(forward_noisy).train(), ("fgsm", "pgd10", "cw_inf")
    complete = evaluate(net, *task, names, eps=EPS, probes=8)
    assert not complete.robust["pgd10"].all()
    assert torch.equal(
        evaluate(net, *task, ("pgd10",), eps=EPS, probes=0).robust["pgd10"],
        complete.robust["pgd10"],
    )
    record = tmp_path / "v.npz"
    evaluate(net, *task, names[:2], eps=EPS, probes=0, record=record)
    continued = evaluate(net, *task, names, eps=EPS, probes=8, record=record)
    assert continued.flags == complete.flags
    assert all(torch.equal(continued.robust[name], complete.robust[name]) for name in names)


def test_verdicts_with_another_surrogate_are_foreign(task: Task, tmp_path: Path) -> None:
    first, second, record = plain_net(), models.build("resnet8-w4", CIFAR10), tmp_path / "v.npz"
    evaluate(
        plain_net(),
        *task,
        ("pgd10@a", "pgd10@b"),
        surrogates={"a": first, "b": second},
        probes=0,
        record=record,
    )
    with pytest.raises(ForeignVerdictsError):
        evaluate(
            plain_net(),
            *task,
            ("pgd10@b", "pgd10@c"),
            surrogates={"b": first, "c": second},
            probes=0,
            record=record,
        )


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_gradient_that_is_not_finite_is_named(norm: str, task: Task) -> None:
    x, y = task
    x = (x - 0.2).clamp(0, 1)
    net = CustomForward(lambda self, x: self.net(x.sqrt().square()))  # type: ignore[operator]
    y = net(x).argmax(dim=1)
    # In l-inf its sign is 0.
    if norm == "Linf":
        assert "gradient-not-finite" in evaluate(net, x, y, ("pgd10",), eps=EPS, norm=norm).flags
    else:
        with pytest.raises(RuntimeError, match="returned NaN: the model's gradient is not finite"):
            evaluate(net, x, y, ("pgd10",), eps=EPS, norm=norm)


PRECISION: dict[str, Callable[[], object]] = {
    "as it is": lambda: None,
    "all TF32": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "all bfloat16": lambda: setattr(torch.backends, "fp32_precision", "bf16"),
    "matrices TF32": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "no TF32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
}
LOW_PRECISION_BACKENDS = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,
    torch.backends.mkldnn.matmul,
    torch.backends.mkldnn.conv,
)


def read_precision() -> list[object]:
    """Return the settings, new and old; None if PyTorch refuses to read an old one."""
    settings: list[object] = [backend.fp32_precision for backend in LOW_PRECISION_BACKENDS]
    for getter in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
    ):
        try:
            settings.append(getter())
        except RuntimeError:
            settings.append(None)
    return settings


@pytest.fixture
def restored_precision() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("restored_precision")
@pytest.mark.parametrize("name", PRECISION)
def test_full_precision_inside_and_the_callers_outside(name: str, task: Task) -> None:
    inside: list[object] = []

    def forward_noted(self: nn.Module, x: Tensor) -> Tensor:
        inside.extend(backend.fp32_precision for backend in LOW_PRECISION_BACKENDS)
        logits: Tensor = self.net(x)  # type: ignore[operator]
        return logits

    expected = evaluate(plain_net(), *task, ("pgd10",), eps=EPS, probes=0).robust["pgd10"]
    PRECISION[name]()
    before = read_precision()
    verdict = evaluate(CustomForward(forward_noted), *task, ("pgd10",), eps=EPS, probes=0).robust[
        "pgd10"
    ]
    assert set(inside) == {"ieee"}
    assert read_precision() == before
    assert torch.equal(verdict, expected)


def test_the_callers_default_dtype(task: Task, quick: str) -> None:
    net = plain_net()
    expected = evaluate(net, *task, ("pgd10", quick), eps=EPS, probes=8)
    torch.set_default_dtype(torch.float64)
    try:
        result = evaluate(net, *task, ("pgd10", quick), eps=EPS, probes=8)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.flags == expected.flags
    assert all(torch.equal(result.robust[name], expected.robust[name]) for name in expected.robust)
