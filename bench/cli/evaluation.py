"""Attack test images and print the result, as `evaluate` and `teacher` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.system.errors import BenchError, UsageError
from bench.system.progress import Progress

if TYPE_CHECKING:
    import torch

    from attacks import Evaluation
    from bench.datasets.splits import Split
    from methods.base import Net


def attack_test_images(
    net: Net,
    test: Split,
    attacks: Sequence[str],
    device: torch.device,
    out: Path | None = None,
    **settings: Any,
) -> Evaluation:
    """Attack a network on a test split, with progress on standard error.

    `out` takes the verdicts on single images, `settings` are arguments of `attacks.evaluate`.
    """
    from attacks import evaluate
    from bench.datasets.augmentation import to_float
    from bench.training.memory_layout import keep_freed_memory

    if device.type == "cpu":
        keep_freed_memory()
    x, y = to_float(test.x).to(device), test.y.to(device)
    try:
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
        with Progress([(0.0, 0.0)]) as progress:
            progress.start("evaluate")
            return evaluate(net, x, y, attacks, record=out, progress=progress.tick, **settings)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise BenchError(f"cannot write {str(out)!r}: {error.strerror}") from error


def print_accuracies(evaluation: Evaluation, count: int, threat: str) -> None:
    """Print accuracies on `count` images, what they cost, and why they may not be believed."""
    print(f"{count} test images, {threat}")
    accuracy = evaluation.accuracy()
    width = max(14, *(len(name) + 1 for name in accuracy))
    for name, value in accuracy.items():
        line = f"{name:{width}}{100 * value:6.2f} %"
        cost = evaluation.cost.get(name)
        if cost:
            passes = f"{cost.forwards / count:8.0f} forward passes an image"
            line += f"{cost.seconds:8.1f} s {passes} {cost.images_per_second:9.0f} passes/s"
        print(line)
    for name, evidence in evaluation.flags.items():
        print(f"flag {name}: {evidence}")
