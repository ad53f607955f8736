"""What is analysed: a student, the teacher it is compared with, and images."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from methods.base import Net


@dataclass(frozen=True)
class Subject:
    """Networks in eval mode on one device, and images there.

    teacher: None where there is none. x: (N, C, H, W) test images in [0, 1]; y: (N,). train_x,
    train_y: training images, for class means. eps: the suite's radius, in `norm`.
    """

    student: Net
    teacher: Net | None
    x: Tensor
    y: Tensor
    train_x: Tensor
    train_y: Tensor
    eps: float
    norm: str = "Linf"
    # Adversarial examples that several groups need, by network ("student", "teacher"), attack.
    cached_examples: dict[tuple[str, str], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
