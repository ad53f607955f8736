"""The diagnostic of `teacher verify`: teachers whose entropy is known, and unusual images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from bench import models
from bench.datasets import DIGITS
from bench.datasets.splits import Split
from bench.teachers import diagnostic
from bench.teachers.diagnostic import TeacherOutputs, class_lines, method_lines, report
from methods.base import Net


def logits_of(probabilities: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


@pytest.fixture
def outputs() -> TeacherOutputs:
    """Four images of three classes, none of class 1; the last one is wrong only when attacked."""
    even, sure = [1 / 3, 1 / 3, 1 / 3], [0.98, 0.01, 0.01]
    nat = logits_of([sure, sure, sure, [0.25, 0.25, 0.5]])
    adv = logits_of([[0.5, 0.25, 0.25], sure, [0.5, 0.25, 0.25], even])
    return TeacherOutputs(torch.tensor([0, 0, 2, 2]), nat, adv)


def constant_teacher(favourite: int) -> Net:
    """Return a network with the probability 0.5 of one class, and the rest alike of nine."""
    net = models.build("resnet8-w4", DIGITS).eval()
    bias = torch.full((10,), 0.5 / 9).log()
    bias[favourite] = math.log(0.5)
    with torch.no_grad():
        net.linear.weight.zero_()  # type: ignore[operator, union-attr]
        net.linear.bias.copy_(bias)  # type: ignore[operator, union-attr]
    return net


def images(labels: Sequence[int]) -> Split:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (len(labels), 1, 8, 8), dtype=torch.uint8)
    return Split(x, torch.tensor(labels))


def test_the_unlearnable_images_are_wrong_when_attacked(outputs: TeacherOutputs) -> None:
    assert outputs.right.tolist() == [True, True, False, True]
    assert outputs.unlearnable.tolist() == [False, False, True, True]


def test_the_entropy_of_all_and_of_the_unlearnable_images(outputs: TeacherOutputs) -> None:
    sure = -0.98 * math.log(0.98) - 0.02 * math.log(0.01)
    half = 1.5 * math.log(2)
    first, second, *_ = report(outputs, "PGD-10, l-inf 0.1")
    nat, adv = (3 * sure + half) / 4, (2 * half + sure + math.log(3)) / 4
    assert "right on 75.0 % clean and on 50.0 % attacked (PGD-10, l-inf 0.1)" in first
    assert f"entropy {nat:.3f} clean and {adv:.3f} attacked, at most 1.099" in first
    assert second.startswith("2 stay unlearnable (wrong when attacked), 1 of them wrong without")
    assert f"entropy {(sure + half) / 2:.3f} clean and {(half + math.log(3)) / 2:.3f}" in second
    assert second.endswith(f"of the others {sure:.3f} and {(half + sure) / 2:.3f}")


def test_classes_have_a_line_the_surest_first(outputs: TeacherOutputs) -> None:
    head, *lines = [line.split() for line in class_lines(outputs)]
    assert head[:2] == ["class", "images"]
    # Class 1 has no image.
    assert [line[:5] for line in lines] == [
        ["0", "2", "100.0", "100.0", "0"],
        ["2", "2", "50.0", "0.0", "2"],
    ]
    assert lines[1][-1] == f"{(1.5 * math.log(2) + math.log(3)) / 2:.3f}"


def test_of_many_classes_the_extremes_have_a_line() -> None:
    y = torch.arange(100)
    logits = torch.nn.functional.one_hot(y, 100) * torch.linspace(1, 20, 100)[:, None]
    lines = class_lines(TeacherOutputs(y, logits, logits))
    assert [int(line.split()[0]) for line in lines[1:-1]] == [*range(99, 94, -1), *range(4, -1, -1)]
    assert lines[-1] == "the 5 surest and the 5 least sure of 100 classes"


def test_what_methods_that_weigh_images_make_of_it(outputs: TeacherOutputs) -> None:
    gacd, saad, iad = method_lines(outputs)
    low, high = (0.25 + 1 / 3) / 2, (0.5 + 0.98) / 2
    assert gacd.endswith(
        f"{low:.3f} on unlearnable images, {high:.3f} on others, {low / high:.2f} times as much"
    )
    sure = -0.98 * math.log(0.98) - 0.02 * math.log(0.01)
    half = 1.5 * math.log(2)
    entropies = (half + math.log(3)) / 2, (half + sure) / 2
    assert f"{entropies[0]:.3f} on unlearnable images, {entropies[1]:.3f} on others" in saad
    trust = (0.25**0.1 + (1 / 3) ** 0.1) / 2
    assert f"to the power 0.1: {trust:.3f} on unlearnable images" in iad


def test_a_teacher_of_constant_outputs_has_the_known_entropy() -> None:
    """It has no gradient, so that no image moves it."""
    result = diagnostic.collect_outputs(constant_teacher(3), images([3, 3, 5]), "Linf", 0.1)
    assert result.unlearnable.tolist() == [False, False, True]
    torch.testing.assert_close(result.nat, result.adv)
    first, *_ = report(result, "")
    entropy = math.log(2) / 2 + math.log(18) / 2
    assert f"entropy {entropy:.3f} clean and {entropy:.3f} attacked, at most 2.303" in first


def test_the_diagnostic_is_the_same_again_and_leaves_random_numbers_alone() -> None:
    net, train = models.build("resnet8-w4", DIGITS).eval(), images([0, 1, 2])
    before = torch.get_rng_state()
    first = diagnostic.collect_outputs(net, train, "Linf", 0.1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    second = diagnostic.collect_outputs(net, train, "Linf", 0.1)
    torch.testing.assert_close(first.adv, second.adv, rtol=0, atol=0)
    assert not torch.equal(first.nat, first.adv)


@pytest.mark.parametrize(
    ("labels", "favourite", "line", "gacd"),
    [
        ([3], 3, "no image stays unlearnable: none is wrong when attacked", "no image is"),
        ([4], 3, "1 stay unlearnable (wrong when attacked), 1 of them", "every image is"),
        ([0, 1, 2], 3, "3 stay unlearnable (wrong when attacked), 3 of them", "every image is"),
    ],
    ids=["one image", "one wrong image", "wrong everywhere"],
)
def test_unusual_teachers_have_a_line(
    labels: list[int], favourite: int, line: str, gacd: str
) -> None:
    teacher = constant_teacher(favourite)
    result = diagnostic.collect_outputs(teacher, images(labels), "L2", 0.5)
    lines = [*report(result, diagnostic.describe_attack("L2", 0.5))]
    assert "(PGD-10, L2 0.5)" in lines[0]
    assert lines[1].startswith(line)
    assert f"and {gacd} unlearnable" in lines[-3]
    assert "nan" not in "\n".join(lines)


def test_a_certain_teacher_has_no_entropy_to_compare_with() -> None:
    logits = torch.tensor([[500.0, 0.0], [0.0, 0.0]])
    result = TeacherOutputs(torch.tensor([0, 1]), logits, logits)
    _, saad, _ = method_lines(result)
    assert saad.endswith("0.693 on unlearnable images, 0.000 on others")
