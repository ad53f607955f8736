"""Measures of the analysis, on networks and features whose answers are known."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import ATTACKS, evaluate
from attacks.attacked_model import perturbation_norm
from bench import models
from bench.analysis.measures import gradients, loss_surface, robust_features, structure
from bench.analysis.measures.examples import attack_component, make_examples, subject_examples
from bench.analysis.measures.findings import Findings, GapError
from bench.analysis.measures.outputs import collect_logits, collect_outputs, pair_layers
from bench.analysis.measures.subject import Subject
from bench.datasets import CIFAR10, DIGITS
from bench.models.adapter import Adapted
from leaderboards.schema import analysis
from methods.base import Net

EPS = 0.05
MODULES = (structure, robust_features, gradients, loss_surface)


class LinearNet(Net):
    """Logits W x + b; the features are the pixels, after `change`."""

    def __init__(self, weight: Tensor, shape: tuple[int, ...] = (1, 4, 4)) -> None:
        super().__init__((0.0,) * shape[0], (1.0,) * shape[0])
        self.num_classes, self.width = weight.shape
        self.linear = nn.Linear(self.width, self.num_classes)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            # Images lie around 0.5: all classes occur.
            self.linear.bias.copy_(-weight.sum(dim=1) / 2)

    def change(self, pixels: Tensor) -> Tensor:
        return pixels

    def features(self, x: Tensor) -> Tensor:
        return self.change(x.flatten(1))

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.linear(f)
        return logits


class RotatedNet(LinearNet):
    """The same logits of features in another basis, which `rotation` (width, width) makes."""

    def __init__(self, weight: Tensor, rotation: Tensor) -> None:
        super().__init__(weight)
        self.rotation = rotation

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.rotation

    def head(self, f: Tensor) -> Tensor:
        return super().head(f @ self.rotation.T)


class ThresholdNet(LinearNet):
    def change(self, pixels: Tensor) -> Tensor:
        return (pixels > 0.5).float()


class ConstantNet(LinearNet):
    def change(self, pixels: Tensor) -> Tensor:
        return 0 * pixels + 1


class NoFeaturesNet(LinearNet):
    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(n: int, *shape: int, seed: int = 0) -> Tensor:
    """Return images that lie in [0.3, 0.7], so that no attack is clipped."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(n, *(shape or (1, 4, 4)), generator=draw) * 0.4 + 0.3


def rotation(width: int) -> Tensor:
    basis: Tensor = torch.linalg.qr(normal(width, width, seed=9))[0]
    return basis


def predictions(net: Net, x: Tensor) -> Tensor:
    return collect_logits(net, x).argmax(dim=1)


def make_subject(student: Net, teacher: Net | None, n: int = 60, norm: str = "Linf") -> Subject:
    """Return a subject whose labels are the student's predictions, every fifth one wrong."""
    x, train_x = images(n), images(100, seed=1)
    y, train_y = predictions(student, x), predictions(student, train_x)
    y[::5] = (y[::5] + 1) % student.num_classes
    return Subject(student.eval(), teacher, x, y, train_x, train_y, EPS, norm)


def measure_all(subject: Subject) -> Findings:
    """Return the findings of all modules; a GapError is the gap of its module."""
    findings = Findings()
    for module in MODULES:
        try:
            findings.update(module.measure(subject))
        except GapError as error:
            findings.gaps[module.__name__.rpartition(".")[2]] = str(error)
    return findings


def number(findings: Findings, group: str, measure: str, *parts: str) -> float:
    return findings.numbers[analysis.measure_name(group, measure, *parts)]


def resnet(arch: str = "resnet8-w4", seed: int = 0, info: object = DIGITS) -> Net:
    """Return an untrained ResNet whose predictions are of all classes."""
    torch.manual_seed(seed)
    net = models.build(arch, info).eval()
    with torch.no_grad():
        logits = net(images(100, *info.shape, seed=5))
        net.linear.weight.div_(logits.std(dim=0)[:, None])
        net.linear.bias.copy_((net.linear.bias - logits.mean(dim=0)) / logits.std(dim=0))
    return net


# Structure


def test_identical_networks_are_equal_in_every_measure() -> None:
    net = resnet()
    x = images(80, 1, 8, 8)
    y = predictions(net, x)
    y[::3] = (y[::3] + 1) % 10
    subject = Subject(net, copy.deepcopy(net), x, y, x, y, EPS / 10)
    findings = structure.measure(subject)
    findings.update(gradients.measure(subject))
    assert not findings.gaps
    ones = ("structure/cka", "agreement", "gradients/cosine")
    zeros = ("correlation_gap", "procrustes", "gradients/distance")
    checked = 0
    for name, value in findings.numbers.items():
        if any(part in name for part in (*ones, *zeros)):
            expected = float(any(part in name for part in ones))
            assert value == pytest.approx(expected, abs=1e-6), name
            checked += 1
    # Four layers, two views.
    assert checked == 2 * (3 + 2 * 4 + 2)
    for view in analysis.VIEWS:
        student, teacher = (
            findings.matrices[f"{analysis.CORRELATION}/{network}/{view}"]
            for network in ("student", "teacher")
        )
        assert student == teacher
        assert [row[i] for i, row in enumerate(student)] == pytest.approx([1.0] * 10)


def test_a_rotated_or_permuted_copy_of_features_is_equal() -> None:
    f = normal(50, 6).double()
    permuted = f[:, [3, 0, 5, 1, 2, 4]]
    for copied in (f @ rotation(6).double(), permuted, -f, 3 * f + 7, F.pad(f, (0, 4))):
        assert structure.linear_cka(f, copied) == pytest.approx(1, abs=1e-6)
        assert structure.procrustes_distance(f, copied) == pytest.approx(0, abs=1e-6)
        assert structure.procrustes_distance(copied, f) == pytest.approx(0, abs=1e-6)


def test_a_network_in_a_rotated_basis_is_equal_too() -> None:
    weight = normal(5, 16)
    findings = structure.measure(make_subject(LinearNet(weight), RotatedNet(weight, rotation(16))))
    for view in analysis.VIEWS:
        assert number(findings, "structure", "cka", "features", view) == pytest.approx(1)
        procrustes = number(findings, "structure", "procrustes", "features", view)
        assert procrustes == pytest.approx(0, abs=1e-5)
        assert number(findings, "structure", "correlation_gap", view) < 1e-5
        assert number(findings, "structure", "error_agreement", view) == 1


def test_features_of_other_images_are_not_equal() -> None:
    f = normal(500, 6).double()
    assert structure.linear_cka(f, f.roll(1, dims=0)) < 0.1
    assert structure.procrustes_distance(f, f.roll(1, dims=0)) > 0.8


def test_cka_and_procrustes_of_half_shared_features() -> None:
    a = torch.tensor([1.0, 1, -1, -1]).double()
    b = torch.tensor([1.0, -1, 1, -1]).double()
    alone, other, both = a[:, None] + 5, b[:, None], torch.stack([a, b], dim=1) - 2
    assert structure.linear_cka(alone, other) == pytest.approx(0)
    assert structure.procrustes_distance(alone, other) == pytest.approx(1)
    # A'B = (4, 0), |A'A| = 4, |B'B| = 4 sqrt 2; |A| = 2, |B| = 2 sqrt 2.
    assert structure.linear_cka(alone, both) == pytest.approx(0.5**0.5)
    assert structure.procrustes_distance(alone, both) == pytest.approx(1 - 0.5**0.5)
    # One direction has twice the length: B'B = diag(16, 4).
    uneven = torch.stack([2 * a, b], dim=1)
    assert structure.linear_cka(alone, uneven) == pytest.approx(4 / 17**0.5)
    assert structure.procrustes_distance(alone, uneven) == pytest.approx(1 - 2 / 5**0.5)


def test_independent_features_have_the_cka_of_chance() -> None:
    n, p, q = 1000, 20, 30
    first, second = normal(n, p).double(), normal(n, q, seed=1).double()
    chance = math.sqrt(p * q / ((n + p) * (n + q)))
    assert structure.linear_cka(first, second) == pytest.approx(chance, rel=0.15)


def test_independent_networks_agree_by_chance() -> None:
    student, teacher = normal(4000, 10).double(), normal(4000, 10, seed=1).double()
    y = torch.arange(4000) % 10
    assert abs(structure.prediction_agreement(student, teacher)) < 0.03
    assert abs(structure.error_agreement(student, teacher, y)) < 0.05
    # Of two networks that are right on nine images of ten, 82 percent are equal by chance.
    right = F.one_hot(y, 10).double()
    wrong = F.one_hot((y + 1) % 10, 10).double()
    draw = [torch.rand(4000, 1, generator=torch.Generator().manual_seed(i)) < 0.1 for i in (2, 3)]
    answers = [torch.where(errs, wrong, right) for errs in draw]
    assert abs(structure.error_agreement(*answers, y)) < 0.05
    assert structure.prediction_agreement(*answers) > 0.7


def test_kappa_by_hand() -> None:
    first, second = F.one_hot(torch.tensor([0, 0, 1, 1])), F.one_hot(torch.tensor([0, 1, 1, 1]))
    # Equal on 3 of 4, by chance on (2 x 1 + 2 x 3) / 16 = 1 / 2.
    assert structure.prediction_agreement(first, second) == pytest.approx(0.5)
    # Right on images 0, 1, 2 and on 0, 2: chance (3 x 2 + 1 x 2) / 16 = 1 / 2.
    y = torch.tensor([0, 0, 1, 0])
    assert structure.error_agreement(first, second, y) == pytest.approx(0.5)


def test_class_correlations_are_over_images_and_their_gap_off_the_diagonal() -> None:
    t, u = torch.tensor([1.0, 1, -1, -1]).double(), torch.tensor([1.0, -1, 1, -1]).double()
    student = torch.stack([t, 3 * t + 1, u], dim=1)
    teacher = torch.stack([t, -t, t + u], dim=1)
    assert structure.class_correlation(student).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    # Pairs: 1 against -1; 0 against 1 / sqrt 2, twice.
    expected = (2 + 0.5**0.5 + 0.5**0.5) / 3
    assert structure.correlation_gap(student, teacher) == pytest.approx(expected)


def test_stages_are_the_last_outputs_at_each_resolution() -> None:
    net, x = resnet(), images(7, 1, 8, 8)
    outputs = collect_outputs(net, x, batch_size=3)
    with torch.no_grad():
        stem = F.relu(net.bn1(net.conv1(net.normalise(x))))
        first = net.layer1(stem)
        second = net.layer2(first)
    assert list(outputs.features) == ["stage1", "stage2", "stage3", "features"]
    assert outputs.resolutions == {"stage1": (8, 8), "stage2": (4, 4), "stage3": (2, 2)}
    for name, output in (("stage1", first), ("stage2", second)):
        torch.testing.assert_close(outputs.features[name], output.mean(dim=(2, 3)).double())
    torch.testing.assert_close(outputs.features["features"], net.features(x).detach().double())
    torch.testing.assert_close(outputs.logits.float(), net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "resolutions"),
    [
        ("resnet8-w4-s2", [16, 8, 4]),
        ("mobilenetv2", [32, 16, 8, 4]),
        ("wrn10-1", [32, 16, 8]),
        ("vit-tiny", []),
        ("timm:vit_tiny_patch16_224", []),
        ("timm:resnet18", [8, 4, 2]),
    ],
)
def test_stages_of_other_networks(arch: str, resolutions: list[int]) -> None:
    net = models.build(arch, CIFAR10).eval()
    outputs = collect_outputs(net, images(2, 3, 32, 32))
    assert list(outputs.resolutions.values()) == [(side, side) for side in resolutions]
    assert outputs.features["features"].shape == (2, net.width)


def test_no_hook_remains_even_if_the_network_fails() -> None:
    net = resnet()
    collect_outputs(net, images(2, 1, 8, 8))
    with pytest.raises(RuntimeError):
        collect_outputs(net, images(2, 3, 8, 8))
    assert not any(layer._forward_hooks for layer in net.modules())


def test_stages_are_paired_by_resolution() -> None:
    x = images(20, 1, 8, 8)
    student, teacher = resnet(), resnet("resnet8-w8-s2")
    pairs = pair_layers(collect_outputs(student, x), collect_outputs(teacher, x))
    assert pairs == {"stage2": "stage1", "stage3": "stage2", "features": "features"}
    subject = Subject(student, teacher, x, predictions(student, x), x, predictions(student, x), EPS)
    findings = structure.measure(subject)
    assert findings.gaps["structure/cka/stage1"] == "the teacher has no stage of 8x8"
    assert "analysis/structure/procrustes/stage3/adv" in findings.numbers


# Adversarial examples


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd20_is_the_one_of_the_suite(norm: str) -> None:
    net, x = resnet(), images(330, 1, 8, 8)
    y = predictions(net, x)
    y[::10] = (y[::10] + 1) % 10
    eps = EPS / 10 if norm == "Linf" else EPS / 2
    adv = make_examples(net, x, y, "pgd20", eps, norm)
    expected = evaluate(net, x, y, ("pgd20",), eps=eps, norm=norm, search="exact", probes=0)
    clean = predictions(net, x) == y
    robust = clean & (predictions(net, adv) == y)
    assert robust.tolist() == expected.robust["pgd20"].tolist()
    assert 0.1 < robust.double().mean() < 0.8
    sizes = perturbation_norm(adv - x, norm)
    assert sizes.max() <= eps * (1 + 1e-5)
    # Each image, the misclassified ones too, has one.
    assert sizes.min() > eps / 2


@pytest.mark.parametrize("name", ["pgd10", "pgd20", "pgd50", "pgd100"])
def test_pgd_of_other_steps_is_the_catalogue_s(name: str) -> None:
    (component,) = ATTACKS[name].components
    assert attack_component(name, "L2") == component
    other = attack_component("pgd7", "Linf")
    assert other == dataclasses.replace(component, steps=7)


def test_making_examples_changes_nothing_else() -> None:
    net, x = resnet(), images(12, 1, 8, 8)
    y, tensors = predictions(net, x), copy.deepcopy(net.state_dict())
    expected = make_examples(net, x, y, "pgd5", EPS, "Linf", seed=3)
    net.layer1.train()
    state, pixels = torch.get_rng_state(), x.clone()
    adv = make_examples(net, x, y, "pgd5", EPS, "Linf", seed=3)
    assert net.layer1.training
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, pixels)
    assert all(torch.equal(tensors[name], value) for name, value in net.state_dict().items())
    # In eval mode, whatever the network's own.
    assert torch.equal(adv, expected)
    assert not torch.equal(adv, make_examples(net, x, y, "pgd5", EPS, "Linf", seed=4))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_examples_of_radius_0_are_the_images(norm: str) -> None:
    net, x = LinearNet(normal(4, 16)), images(5)
    assert torch.equal(make_examples(net, x, predictions(net, x), "pgd20", 0, norm), x)


def test_examples_are_made_once_and_at_their_share_of_the_radius() -> None:
    subject = make_subject(LinearNet(normal(4, 16)), LinearNet(normal(4, 16, seed=1)))
    assert subject_examples(subject) is subject_examples(subject)
    for network in ("student", "teacher"):
        for name, share in analysis.FEATURE_ATTACKS.items():
            sizes = (subject_examples(subject, network, name) - subject.x).abs().amax(dim=(1, 2, 3))
            torch.testing.assert_close(sizes, torch.full((60,), EPS * share), rtol=1e-4, atol=0)
    ours, theirs = subject_examples(subject), subject_examples(subject, "teacher")
    assert not torch.equal(ours, theirs)


# Robust features


def test_features_that_ignore_the_perturbation_stay_as_they_are() -> None:
    net = ThresholdNet(normal(4, 16))
    subject = make_subject(net, None)
    apart = torch.where(subject.x > 0.5, subject.x + 0.1, subject.x - 0.1)
    findings = robust_features.measure(dataclasses.replace(subject, x=apart))
    for attack in analysis.FEATURE_ATTACKS:
        assert number(findings, "features", "cosine", attack) == pytest.approx(1)
        assert number(findings, "features", "distance", attack) == 0
    for measure in ("scatter", "class_mean"):
        clean, attacked = (number(findings, "features", measure, v) for v in ("clean", "adv"))
        assert clean == attacked


def test_features_that_are_the_pixels_move_as_the_pixels() -> None:
    subject = make_subject(LinearNet(normal(2, 16)), None)
    net, x, y = subject.student, subject.x, subject.y
    weight = net.linear.weight.detach()
    # With two classes each signed step is that of the worst case.
    step = EPS * (weight[1 - y] - weight[y]).sign()
    findings = robust_features.measure(subject)
    for attack, share in analysis.FEATURE_ATTACKS.items():
        f, moved = x.flatten(1), x.flatten(1) + share * step
        distance = share * EPS * 4 / f.norm(dim=1)
        cosine = (f * moved).sum(dim=1) / f.norm(dim=1) / moved.norm(dim=1)
        assert number(findings, "features", "distance", attack) == pytest.approx(
            float(distance.mean()), rel=1e-4
        )
        assert number(findings, "features", "cosine", attack) == pytest.approx(
            float(cosine.mean()), rel=1e-5
        )


def test_distance_is_relative_to_the_clean_features_and_zero_ones_are_left_out() -> None:
    clean = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    attacked = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    assert robust_features.mean_distance(clean, attacked) == pytest.approx((1 + 2**0.5) / 2)
    assert robust_features.mean_cosine(clean, attacked) == 0
    opposite = robust_features.mean_cosine(clean, -clean)
    assert opposite == pytest.approx(-1)


def test_scatter_by_hand() -> None:
    f = torch.tensor([[-1.0, 7], [1, 7], [4, 7], [5, 7], [6, 7], [5, 7]]).double()
    y = torch.tensor([3, 3, 8, 8, 8, 8])
    # Means 0 and 5, of all 10 / 3: between 2 (10/3)^2 + 4 (5/3)^2, within 2 + 2.
    assert robust_features.scatter_ratio(f, y) == pytest.approx(100 / 3 / 4)
    assert robust_features.scatter_ratio(10 * f - 4, y) == pytest.approx(100 / 3 / 4)


def test_nearest_class_mean_by_hand() -> None:
    train = torch.tensor([[0.0, 0], [0, 2], [10, 0], [10, 2]]).double()
    train_y = torch.tensor([2, 2, 5, 5])
    test = torch.tensor([[4.0, 1], [6, 1], [20, 30], [-9, 30]]).double()
    y = torch.tensor([2, 2, 5, 5])
    assert robust_features.class_mean_accuracy(train, train_y, test, y) == 0.5


def test_class_means_are_those_of_clean_training_images() -> None:
    subject = make_subject(LinearNet(normal(3, 16)), None)
    swapped = dataclasses.replace(subject, train_y=(subject.train_y + 1) % 3)
    right = robust_features.measure(subject)
    wrong = robust_features.measure(swapped)
    name = analysis.measure_name("features", "class_mean", "clean")
    assert right.numbers[name] > 0.5 > wrong.numbers[name]
    attacked = number(right, "features", "class_mean", "adv")
    assert attacked < right.numbers[name]


def test_tsne_shows_the_first_images_of_both_views_and_repeats() -> None:
    subject = make_subject(LinearNet(normal(3, 16)), None, n=20)
    first, second = (robust_features.measure(subject).points for _ in range(2))
    assert first == second
    assert set(first) == {f"{analysis.TSNE}/clean", f"{analysis.TSNE}/adv"}
    for points in first.values():
        assert [label for *_, label in points] == subject.y.tolist()


# Gradients


def test_gradients_of_linear_networks_are_their_weights() -> None:
    weight, other = normal(2, 16), normal(2, 16, seed=1)
    student, teacher = LinearNet(weight), LinearNet(other)
    subject = make_subject(student, teacher)
    findings = gradients.measure(subject)
    (a, b), y = ((w[1] - w[0]).double() for w in (weight, other)), subject.y
    cosine = float(a @ b / a.norm() / b.norm())
    # The gradient is (1 - p_y) (w_other - w_y).
    wrong = [
        1 - collect_logits(net, subject.x).softmax(dim=1)[range(60), y]
        for net in (student, teacher)
    ]
    lengths = wrong[0] * a.norm(), wrong[1] * b.norm()
    difference = (wrong[0][:, None] * a - wrong[1][:, None] * b).norm(dim=1)
    distance = float((difference / (lengths[0] + lengths[1])).mean())
    root = 16**0.5
    sparsity = float((root - a.abs().sum() / a.norm()) / (root - 1))
    assert number(findings, "gradients", "cosine", "clean") == pytest.approx(cosine, abs=1e-5)
    assert number(findings, "gradients", "cosine", "adv") == pytest.approx(cosine, abs=1e-5)
    assert number(findings, "gradients", "distance", "clean") == pytest.approx(distance, rel=1e-4)
    assert number(findings, "gradients", "sparsity", "clean") == pytest.approx(sparsity, rel=1e-4)


def test_gradient_is_that_of_the_cross_entropy() -> None:
    net, x = LinearNet(normal(5, 16)), images(30)
    y = torch.arange(30) % 5
    leaf = x.clone().requires_grad_()
    F.cross_entropy(net(leaf), y, reduction="sum").backward()
    expected = leaf.grad.flatten(1).double()
    torch.testing.assert_close(gradients.input_gradients(net, x, y), expected, rtol=1e-4, atol=1e-6)


def test_a_sure_network_keeps_the_direction_of_its_gradient() -> None:
    weight = 200 * normal(3, 16)
    net, x = LinearNet(weight).eval(), images(200)
    y = predictions(net, x)
    logits = collect_logits(net, x)
    top = logits.topk(2, dim=1)
    margins = top.values[:, 0] - top.values[:, 1]
    sure = (margins > 20) & (margins < 80)
    gradient = gradients.input_gradients(net, x[sure], y[sure])
    p = logits[sure].softmax(dim=1)
    p[range(len(p)), y[sure]] = 0
    expected = p @ weight.double() - p.sum(dim=1, keepdim=True) * weight[y[sure]].double()
    assert sure.sum() > 20
    assert F.cosine_similarity(gradient, expected, dim=1, eps=0).min() > 0.999


def test_gradient_measures_by_hand() -> None:
    g = torch.tensor([[3.0, 4, 0, 0], [0, 0, 0, 0]]).double()
    assert gradients.mean_sparsity(g) == pytest.approx(0.6)
    assert gradients.mean_sparsity(torch.eye(4).double()) == 1
    assert gradients.mean_sparsity(torch.tensor([[2.0, -2, 2, 2]])) == pytest.approx(0)
    assert gradients.mean_cosine(g, -g) == pytest.approx(-1)
    assert gradients.mean_distance(g, -g) == pytest.approx(1)
    assert gradients.mean_distance(g, 2 * g) == pytest.approx(1 / 3)


# Loss surface


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_loss_surface_of_a_linear_network(norm: str) -> None:
    subject = make_subject(LinearNet(normal(2, 16)), None, norm=norm)
    findings = loss_surface.measure(subject)
    net, x, y = subject.student, subject.x, subject.y
    weight = net.linear.weight.detach().double()
    logits = collect_logits(net, x)
    margin = logits[range(60), y] - logits[range(60), 1 - y]
    # An attack of size eps takes eps times the dual norm from each margin.
    loss = EPS * float((weight[0] - weight[1]).norm(p=1 if norm == "Linf" else 2))
    by_eps = dict(findings.lines[analysis.BY_EPS])
    for share in (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2):
        # In L2 PGD comes within 5 percent of the worst case.
        least, most = ((margin > share * loss * part).double().mean() for part in (1, 0.95))
        assert least - 1e-5 <= by_eps[share] <= (most if norm == "L2" else least) + 1e-5
    assert 0 < by_eps[2] < by_eps[1] < by_eps[0] == pytest.approx(0.8)
    a = list(by_eps.values())
    area = sum((a[i] + a[i + 1]) * 0.125 for i in range(6)) + (a[6] + a[7]) / 4
    assert number(findings, "gradients", "area") == pytest.approx(area / 2, abs=1e-5)
    along, tolerance = dict(findings.lines[analysis.LOSS_ATTACK]), 1e-4 if norm == "Linf" else 5e-3
    assert list(along) == pytest.approx([i / 10 for i in range(11)])
    for position, value in along.items():
        expected = float(F.softplus(position * loss - margin).mean())
        assert value == pytest.approx(expected, rel=tolerance)
    rise = float((F.softplus(loss - margin) - F.softplus(-margin)).mean())
    assert number(findings, "gradients", "attack_rise") == pytest.approx(rise, rel=5 * tolerance)
    steps = dict(findings.lines[analysis.BY_STEPS])
    assert list(steps) == [1, 2, 5, 10, 20, 50]
    assert steps[20] == steps[50] == by_eps[1]
    # One step of a quarter of eps, from anywhere in the ball; in L2 of 2.5 eps.
    assert norm == "L2" or steps[1] > steps[2] > steps[20]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_noise_is_as_large_as_the_attack_and_harms_less(norm: str) -> None:
    subject = make_subject(LinearNet(normal(2, 16)), None, norm=norm)
    corners = loss_surface.random_corners(subject)
    sizes = perturbation_norm(corners - subject.x, norm)
    torch.testing.assert_close(sizes, torch.full((60,), EPS), rtol=1e-4, atol=0)
    if norm == "Linf":
        assert (corners - subject.x).abs().amin() > 0.99 * EPS
    black = dataclasses.replace(subject, x=torch.zeros_like(subject.x))
    assert loss_surface.random_corners(black).min() == 0
    findings = loss_surface.measure(subject)
    noise = dict(findings.lines[analysis.LOSS_RANDOM])
    y = subject.y
    end = float(F.cross_entropy(collect_logits(subject.student, corners), y))
    start = float(F.cross_entropy(collect_logits(subject.student, subject.x), y))
    assert noise[0] == pytest.approx(start, abs=1e-5)
    assert noise[1] == pytest.approx(end, abs=1e-5)
    rise = number(findings, "gradients", "random_rise")
    assert rise == pytest.approx(end - start, abs=1e-6)
    assert abs(rise) < number(findings, "gradients", "attack_rise") / 3


# What cannot be measured


def altered(**fields: object) -> Callable[[], Subject]:
    def make() -> Subject:
        subject = make_subject(LinearNet(normal(3, 16)), LinearNet(normal(3, 16, seed=1)))
        return dataclasses.replace(subject, **fields)

    return make


def first_images(*rows: int) -> Callable[[], Subject]:
    def make() -> Subject:
        subject = altered()()
        x, y = subject.x[list(rows)], subject.y[list(rows)]
        return dataclasses.replace(subject, x=x, y=y)

    return make


def one_image_a_class() -> Subject:
    subject = altered()()
    rows = [int((subject.y == label).nonzero()[0]) for label in range(3)]
    x, y = subject.x[rows], subject.y[rows]
    return dataclasses.replace(subject, x=x, y=y, train_x=x, train_y=y)


def all_right() -> Subject:
    subject = make_subject(LinearNet(normal(3, 16)), LinearNet(normal(3, 16)))
    return dataclasses.replace(subject, y=predictions(subject.student, subject.x))


def no_variance() -> Subject:
    subject = make_subject(ConstantNet(normal(3, 16)), LinearNet(normal(3, 16)))
    return dataclasses.replace(subject, y=torch.arange(60) % 3, train_y=torch.arange(100) % 3)


def nan_gradients() -> Subject:
    class RootNet(LinearNet):
        """The root of zero has no gradient."""

        def change(self, pixels: Tensor) -> Tensor:
            return pixels + (0 * pixels).sqrt()

    return make_subject(RootNet(normal(3, 16)), None, norm="L2")


def nan_logits() -> Subject:
    subject = altered()()
    return dataclasses.replace(subject, student=LinearNet(torch.full((3, 16), torch.nan)))


BAD_INPUTS: dict[str, tuple[Callable[[], Subject], dict[str, str], tuple[str, ...]]] = {
    "no teacher": (
        altered(teacher=None),
        {"structure": "no teacher", "gradients/cosine": "no teacher"},
        ("features/cosine/fgsm", "gradients/area", "gradients/sparsity/adv"),
    ),
    "other classes": (
        altered(teacher=LinearNet(normal(5, 16))),
        {
            "structure/correlation_gap/clean": "5 classes, the student 3",
            "structure/error_agreement/adv": "5 classes",
            "gradients/distance": "5 classes",
        },
        ("structure/cka/features/adv", "gradients/area", "gradients/sparsity/clean"),
    ),
    "fewer classes": (
        altered(teacher=LinearNet(normal(2, 16))),
        {"structure/prediction_agreement/adv": "2 classes", "gradients/cosine": "2 classes"},
        ("structure/procrustes/features/clean", "gradients/attack_rise"),
    ),
    "broken teacher": (
        altered(teacher=LinearNet(torch.full((3, 16), torch.nan))),
        {"structure/clean": "teacher: ", "gradients/cosine": "not finite"},
        ("features/scatter/adv", "gradients/area"),
    ),
    "one image a class": (
        one_image_a_class,
        {"features/scatter/clean": "one image a class", "features/tsne": "needs 5 images"},
        ("structure/cka/features/clean", "features/class_mean/adv", "gradients/area"),
    ),
    "one image": (
        first_images(0),
        {"structure/cka/features/adv": "no variance", "features/scatter/adv": "one class"},
        ("features/cosine/pgd20", "gradients/cosine/clean", "gradients/area"),
    ),
    "one class": (
        altered(y=torch.zeros(60, dtype=torch.int64)),
        {"features/scatter/adv": "one class"},
        ("structure/error_agreement/clean", "features/class_mean/clean", "gradients/area"),
    ),
    "labels of other classes": (
        altered(y=torch.full((60,), 7)),
        {"loss_surface": "labels go from 7 to 7", "gradients": "3 classes"},
        ("structure/cka/features/clean",),
    ),
    "no variance": (
        no_variance,
        {
            "structure/cka/features/clean": "no variance",
            "structure/correlation_gap/adv": "no variance",
            "structure/correlation/student/clean": "no variance",
            "features/class_mean/clean": "no variance",
            "features/tsne": "no variance",
            "gradients/sparsity/clean": "zero for every image",
        },
        ("features/distance/pgd20", "gradients/area"),
    ),
    "no features": (
        lambda: make_subject(NoFeaturesNet(normal(3, 16)), LinearNet(normal(3, 16, seed=1))),
        {"structure/cka/features": "no features", "robust_features": "no features"},
        ("structure/correlation_gap/clean", "gradients/cosine/adv", "gradients/area"),
    ),
    "no training images": (
        altered(train_x=images(0), train_y=torch.zeros(0, dtype=torch.int64)),
        {"features/class_mean/clean": "no training image of class 0"},
        ("features/scatter/clean",),
    ),
    "all right": (
        all_right,
        {"structure/error_agreement/clean": "one answer"},
        ("structure/prediction_agreement/clean",),
    ),
    "no gradient": (
        nan_gradients,
        {
            "structure/adv": "not finite",
            "features/pgd20": "not finite",
            "gradients": "not finite",
            "gradients/attack": "not finite",
        },
        ("features/scatter/clean", "gradients/random_rise"),
    ),
    "no finite logits": (nan_logits, dict.fromkeys(("structure", "gradients"), "not finite"), ()),
    "no images": (
        first_images(),
        dict.fromkeys(("structure", "robust_features", "loss_surface"), "no images"),
        (),
    ),
    "attack of another norm": (
        altered(norm="L2"),
        {"features/fgsm": "fgsm is not defined in L2"},
        ("features/cosine/pgd20-half", "gradients/area"),
    ),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
@pytest.mark.filterwarnings("error")
def test_bad_input_is_a_gap_and_the_rest_is_measured(name: str) -> None:
    make, gaps, measured = BAD_INPUTS[name]
    findings = measure_all(make())
    for gap, reason in gaps.items():
        assert reason in findings.gaps[gap]
    assert all("\n" not in reason for reason in findings.gaps.values())
    for number_name in measured:
        assert f"{analysis.ANALYSIS}{number_name}" in findings.numbers
    check_schema(findings)


@pytest.mark.filterwarnings("error")
def test_findings_of_a_full_subject_fit_the_record() -> None:
    findings = measure_all(make_subject(LinearNet(normal(3, 16)), LinearNet(normal(3, 16, seed=1))))
    assert findings.gaps == {"structure/stages": "the student has no convolutional stages"}
    check_schema(findings)
    groups = ("structure", "features", "gradients")
    expected = {
        (group, measure.name) for group in groups for measure in analysis.GROUPS[group].measures
    }
    measured = {analysis.split_name(name) for name in findings.numbers}
    assert {(group.name, measure.name) for group, measure, _ in measured} == expected
    assert len(findings.matrices) == 4
    assert set(findings.lines) == {
        analysis.BY_EPS,
        analysis.BY_STEPS,
        analysis.LOSS_ATTACK,
        analysis.LOSS_RANDOM,
    }


def check_schema(findings: Findings) -> None:
    """Check that names are those of the schema and numbers finite and in their range."""
    fields = {name: getattr(findings, name) for name in ("matrices", "lines", "points", "gaps")}
    analysis.Analysis(version=1, images=60, **fields)
    for name, value in findings.numbers.items():
        assert analysis.split_name(name), name
        assert math.isfinite(value), name


def test_an_adapted_network_is_measured_as_any_other() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    net, x = Adapted(module, DIGITS).eval(), images(20, 1, 8, 8)
    y = torch.arange(20) % 10
    subject = Subject(net, resnet(), x, y, x, y, EPS)
    findings = structure.measure(subject)
    assert "analysis/structure/cka/stage1/clean" in findings.numbers
    assert "analysis/structure/cka/stage2/adv" in findings.numbers
    last = collect_outputs(net, x).features
    torch.testing.assert_close(last["stage2"], last["features"])
