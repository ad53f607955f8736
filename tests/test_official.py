"""Verdicts against the official AutoAttack, image by image.

The package `pyautoattack` carries its attack files.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pyautoattack import AutoAttack
from tasks import Task, trained
from torch import Tensor, nn

from attacks import evaluate
from attacks.attacked_model import AttackedModel
from attacks.build import Settings, build_attack
from attacks.catalog import ATTACKS, Attack, attack_components

STEPS, QUERIES = 20, 500


@pytest.fixture(scope="module")
def task() -> Task:
    return trained(10)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a fifth of the steps and a tenth of the queries, in the official code too."""

    def shorten(component: Attack) -> Attack:
        return replace(component, steps=QUERIES if component.kind == "square" else STEPS)

    for name in ("aa", "aa_plus", "aa_rand", "apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square"):
        components = tuple(map(shorten, ATTACKS[name].components))
        monkeypatch.setitem(ATTACKS, name, replace(ATTACKS[name], components=components))
    official_init = AutoAttack.__init__

    def short_init(self: AutoAttack, *arguments: Any, **options: Any) -> None:
        official_init(self, *arguments, **options)
        for apgd in (self.apgd, self.apgd_targeted):
            apgd.n_iter, apgd.n_iter_2, apgd.n_iter_min, apgd.size_decr = STEPS, 4, 1, 1
        self.fab.n_iter, self.square.n_queries = STEPS, QUERIES

    monkeypatch.setattr(AutoAttack, "__init__", short_init)


def official_verdicts(
    task: Task, eps: float, norm: str = "Linf", batch_size: int = 250, **kind: Any
) -> Tensor:
    """Return the official verdicts (N,) with seed 0; `targets` are those of APGD-T and FAB-T."""
    net, x, y = copy.deepcopy(task[0]).requires_grad_(False), task[1], task[2]
    targets = kind.pop("targets", 9)
    attack = AutoAttack(net, eps=eps, norm=norm, seed=0, **kind)
    if kind.get("version") == "custom":
        attack.apgd.n_restarts = 1
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    with torch.random.fork_rng():
        _, classes = attack.run_standard_evaluation(x, y, batch_size=batch_size)
    return classes == y


def is_telling(verdict: Tensor) -> bool:
    """Return whether some images are fooled and some robust: else equal verdicts say nothing."""
    return 0 < int(verdict.sum()) < len(verdict) - 1


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.12), ("L2", 0.6)])
def test_standard_with_the_full_budgets(task: Task, norm: str, eps: float) -> None:
    expected = official_verdicts(task, eps, norm)
    assert (
        evaluate(*task, ("aa",), eps=eps, norm=norm, probes=0).robust["aa"].tolist()
        == expected.tolist()
    )
    assert is_telling(expected)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.12), ("L2", 0.6)])
@pytest.mark.parametrize("batch_size", [250, 10])
def test_standard(task: Task, norm: str, eps: float, batch_size: int) -> None:
    expected = official_verdicts(task, eps, norm, batch_size)
    result = evaluate(*task, ("aa",), eps=eps, norm=norm, batch_size=batch_size, probes=0)
    assert result.robust["aa"].tolist() == expected.tolist()
    assert is_telling(expected)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.12), ("L2", 0.6)])
@pytest.mark.parametrize("version", ["plus", "rand"])
def test_plus_and_rand(task: Task, version: str, norm: str, eps: float) -> None:
    expected = official_verdicts(task, eps, norm, version=version)
    assert (
        evaluate(*task, (f"aa_{version}",), eps=eps, norm=norm, probes=0)
        .robust[f"aa_{version}"]
        .tolist()
        == expected.tolist()
    )
    assert is_telling(expected)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("classes", "eps", "parts"),
    [
        (3, 0.2, ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
        (2, 0.3, ["apgd-ce", "fab-t", "square"]),
    ],
)
def test_two_and_three_classes_keep_the_losses_that_are_defined(
    classes: int, eps: float, parts: list[str]
) -> None:
    task = trained(classes)
    assert [part.kind for part in attack_components("aa", classes)] == parts
    expected = official_verdicts(task, eps, version="custom", attacks=parts, targets=classes - 1)
    result = evaluate(*task, ("aa",), eps=eps, probes=0)
    assert result.robust["aa"].tolist() == expected.tolist()
    assert list(result.cost["aa"].fooled) == parts
    assert is_telling(expected)


@pytest.mark.usefixtures("short")
def test_a_hundred_classes_have_nine_targets() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 100))
    x = torch.rand(12, 3, 8, 8)
    y = net(x).argmax(dim=1)
    expected = official_verdicts((net, x, y), 0.01)
    assert (
        evaluate(net, x, y, ("aa",), eps=0.01, probes=0).robust["aa"].tolist() == expected.tolist()
    )
    assert is_telling(expected)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("row", [0, 5])
def test_one_image(task: Task, row: int) -> None:
    single = (task[0], task[1][row : row + 1], task[2][row : row + 1])
    assert (
        evaluate(*single, ("aa",), eps=0.12, probes=0).robust["aa"].tolist()
        == official_verdicts(single, 0.12).tolist()
    )


def test_no_images(task: Task) -> None:
    result = evaluate(task[0], task[1][:0], task[2][:0], ("aa", "fgsm"))
    assert result.robust["aa"].shape == result.clean.shape == (0,)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square"])
def test_each_component_equals_the_official_one(task: Task, name: str, norm: str) -> None:
    """Compare the predictions on all images, for Square also the images themselves."""
    net, x, y = task
    eps = 0.12 if norm == "Linf" else 0.6
    autoattack = AutoAttack(copy.deepcopy(net).requires_grad_(False), eps=eps, norm=norm, seed=0)
    with torch.random.fork_rng():
        match name:
            case "apgd_ce" | "apgd_dlr":
                autoattack.apgd.loss = name[5:]
                expected = autoattack.apgd.perturb(x, y)
            case "apgd_t":
                expected = autoattack.apgd_targeted.perturb(x, y)
            case "fab_t":
                autoattack.fab.targeted, autoattack.fab.n_restarts = True, 1
                expected = autoattack.fab.perturb(x, y)
            case _:
                expected = autoattack.square.perturb(x, y)
        settings = Settings(eps, norm, seed=0, num_classes=10)
        adv = build_attack(*ATTACKS[name].components, AttackedModel(net, x[:2]), settings)(x, y)
    assert torch.equal(net(adv).argmax(dim=1) == y, net(expected).argmax(dim=1) == y)
    # Its images are those of the random search, step by step.
    if name == "square":
        torch.testing.assert_close(adv, expected, rtol=0, atol=1e-5)
