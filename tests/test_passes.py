"""Order and number of passes, and the other switches to the scripts' bookkeeping, step by step."""

from __future__ import annotations

import dataclasses
from typing import Any

import formulas
import numpy as np
import pytest
import torch
from formulas import LABELS, At, flat_batch, flat_nets
from passes import assert_seen, normed_batch, normed_nets

from methods import contract
from methods.absld import Absld
from methods.base import Batch, Method, spec_values
from methods.bmtard import Bmtard
from methods.ciard import Ciard
from methods.contract import label
from methods.contrast import MemoryContrast
from methods.crd import Crd
from methods.crd_adv import CrdAdv
from methods.fair_rslad import FairRslad
from methods.gacd import Gacd
from methods.inner import mode, still_statistics
from methods.mart import Mart
from methods.mtard import Mtard
from methods.trades import Trades

# --- Passes in train mode

PASSES: tuple[tuple[Method, str], ...] = (
    (Mart(), "adv x"),
    (Mart(script_passes=True), "x adv"),
    (Trades(), "x adv"),
    (Trades(script_passes=True), "x adv x"),
    (Ciard(), "adv x"),
    (Ciard(script_passes=True), "x adv"),
    (Ciard(script_passes=True, train_mode_teacher=True), "x adv"),
)


@pytest.mark.parametrize(("case", "order"), PASSES, ids=lambda value: str(value)[:50])
def test_the_student_s_statistics_are_those_of_the_passes(case: Method, order: str) -> None:
    nets, batch = normed_nets(case), normed_batch()
    adv = case.attack(nets, batch)
    case.loss(nets, batch, adv)
    assert_seen(nets.student, *({"x": batch.x, "adv": adv}[name] for name in order.split()))


@pytest.mark.parametrize(
    ("switches", "order"),
    [
        ({}, ""),
        ({"script_passes": True}, ""),
        ({"train_mode_teacher": True}, "adv"),
        ({"train_mode_teacher": True, "script_passes": True}, "x adv"),
    ],
)
def test_ciard_s_teacher_sees_the_clean_batch_too(switches: dict[str, Any], order: str) -> None:
    case = Ciard(**switches)
    nets, batch = normed_nets(case), normed_batch()
    adv = case.attack(nets, batch)
    case.loss(nets, batch, adv)
    passes = ({"x": batch.x, "adv": adv}[name] for name in order.split())
    assert_seen(nets.parts["teacher"], *passes)


@pytest.mark.parametrize("method", [Mart, Trades, Ciard])
def test_passes_change_neither_loss_nor_gradient(method: type[Method]) -> None:
    """At the same images: in train mode they depend on no running statistics."""
    results = []
    for switch in (False, True):
        case: Method = method(script_passes=switch)  # type: ignore[call-arg]
        nets, batch = normed_nets(case), normed_batch()
        total = contract.total(case.loss(nets, batch, 1 - batch.x))
        gradients = torch.autograd.grad(total, list(nets.student.parameters()))
        results.append(torch.cat([total[None], *(value.flatten() for value in gradients)]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_ciard_attacks_with_the_statistics_of_the_clean_pass() -> None:
    batch, examples = normed_batch(), []
    for switch in (False, True):
        case = Ciard(script_passes=switch)
        nets = normed_nets(case)
        torch.manual_seed(1)
        examples.append(case.attack(nets, batch))
    # The same attack on a student which has seen x.
    nets = normed_nets(Ciard())
    nets.student(batch.x)
    torch.manual_seed(1)
    assert torch.equal(Ciard().attack(nets, batch), examples[1])
    assert not torch.equal(examples[0], examples[1])


def test_still_statistics() -> None:
    nets, batch = normed_nets(Mart()), normed_batch()
    expected = nets.student(batch.x)
    before = contract.copied(nets.student)
    with still_statistics(nets.student):
        assert torch.equal(nets.student(batch.x), expected)
        with mode(nets.student, training=False):
            assert not torch.equal(nets.student(batch.x), expected)
    assert all(torch.equal(value, before[key]) for key, value in nets.student.state_dict().items())
    nets.student(batch.x)
    assert_seen(nets.student, batch.x, batch.x)


# --- Sums and means of the classes


def epoch_of(y: list[int], epoch: int = 0) -> Batch:
    """Return a batch with these labels, at most as many as there are images."""
    batch = flat_batch(epoch=epoch, epochs=300)
    size = len(y)
    return dataclasses.replace(batch, x=batch.x[:size], y=torch.tensor(y), index=batch.index[:size])


@pytest.mark.parametrize("y", [[0, 0, 0, 0, 1, 2], [0, 1, 1, 1, 1, 1]], ids=str)
def test_absld_compares_sums_as_the_script_does(y: list[int]) -> None:
    """With a rare class, and with a class that never occurs; over two epochs."""
    case = Absld(class_sums=True)
    nets, tau = flat_nets(case), np.ones((2, 3))
    for epoch in range(2):
        batch = epoch_of(y, epoch)
        at = At(case, nets, batch, 1 - batch.x)
        case.loss(nets, batch, at.adv)
        losses = np.stack([formulas.ce(at.s, at.y), formulas.ce(at.s_adv, at.y)])
        sums = np.stack([losses[:, at.y == c].sum(axis=1) for c in range(3)], axis=1)
        case.loss(nets, epoch_of(y, epoch + 1), batch.x)
        gap = sums - sums.mean(axis=1, keepdims=True)
        tau = np.clip(tau - 0.1 * gap / np.abs(gap).max(axis=1, keepdims=True), 0.5, 5)
        assert nets.parts["classes"].get_buffer("tau").numpy() == pytest.approx(tau, rel=1e-5)
        nets.parts["classes"].get_buffer("sums").zero_()
        nets.parts["classes"].get_buffer("counts").zero_()
    assert tau[0].argmin() == np.bincount(y).argmax()


@pytest.mark.parametrize("class_sums", [True, False])
@pytest.mark.parametrize("y", [[0, 0, 0, 0, 1, 2], [0, 1, 1, 1, 1, 1]], ids=str)
def test_fair_rslad_weighs_by_sums_as_the_script_does(y: list[int], class_sums: bool) -> None:
    """kappa over N / C; a class that never occurs has the floor 0.1, no NaN."""
    case = FairRslad(class_sums=class_sums)
    nets = flat_nets(case)
    fair, kappa = nets.parts["fair"], np.array([3.0, 4, 5, 6, 7, 8])
    fair.add(torch.tensor(kappa)[None], torch.tensor(y))  # type: ignore[operator]
    fair.begin_step(epoch_of(y, 1), case.power, class_sums)  # type: ignore[operator]
    sums, counts = np.bincount(y, kappa, 3), np.bincount(y, minlength=3)
    if class_sums:
        w = np.maximum(sums / (len(y) / 3), 0.1) ** -2
    else:
        w = (sums / counts) ** -2 if counts.all() else np.ones(3)
    expected = np.clip(w / w.mean(), 5 / 6, 5 / 2)
    assert fair.get_buffer("weights").numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [Absld, FairRslad])
def test_sums_of_an_epoch_without_images_change_nothing(method: type[Method]) -> None:
    case: Method = method(class_sums=True)  # type: ignore[call-arg]
    nets, batch = flat_nets(case), epoch_of(LABELS, epoch=5)
    before = contract.copied(nets.parts)
    case.loss(nets, batch, case.attack(nets, batch))
    for name in ("fair.weights", "classes.tau"):
        if name in before:
            assert torch.equal(nets.parts.get_buffer(name), before[name])


# --- MTARD's weights


@pytest.mark.parametrize("case", [Mtard(early_weights=True), Bmtard(early_weights=True)], ids=label)
def test_mtard_s_weights_move_before_they_count(case: Mtard) -> None:
    nets, w, first = flat_nets(case), np.full(2, 0.5), None
    optimiser = torch.optim.SGD(nets.student.parameters(), lr=0.5)
    for epoch in (0, 0, 215):
        batch = dataclasses.replace(flat_batch(epoch=epoch, epochs=300))
        at = At(case, nets, batch, 1 - batch.x)
        tau = at.sg.buffer("uncertainty.tau") if isinstance(case, Bmtard) else np.ones(2)
        now = np.array(
            [
                formulas.kl_of_probabilities(formulas.softmax(t / temperature), formulas.softmax(s))
                .mean()
                for t, s, temperature in ((at.t_adv, at.s_adv, tau[0]), (at.n, at.s, tau[1]))
            ]
        )  # fmt: skip
        first = now if first is None else first
        r = now / first
        w = w + (0.025 if epoch < 215 else 0.0025) * (r / r.sum() - w)
        terms = case.loss(nets, batch, at.adv)
        assert [term.item() for term in terms.values()] == pytest.approx(w * now, rel=1e-5)
        optimiser.zero_grad()
        contract.total(terms).backward()
        optimiser.step()
        case.after_step(nets, batch)
    assert abs(w[0] - 0.5) > 1e-4


# --- CRD's memory


def test_crd_s_memory_over_three_steps() -> None:
    """Losses, entries, labels and Z, which is the first step's."""
    case = Crd(memory=16384)
    nets, z = flat_nets(case), dict[str, float]()
    nets.parts.double()
    optimiser = torch.optim.SGD([*nets.student.parameters(), *nets.parts.parameters()], lr=0.1)
    for step in range(3):
        batch = flat_batch()
        batch = dataclasses.replace(batch, x=batch.x.roll(step, 0), index=batch.index + 2 * step)
        at = At(case, nets, batch, batch.x)
        expected = formulas.against_memory(at, z)
        terms = case.loss(nets, batch, batch.x)
        assert terms["contrast"].item() == pytest.approx(0.8 * expected, rel=1e-9)
        for side, f in (("s", formulas.features(nets.student, at.x)),
                        ("t", formulas.features(nets.teacher, at.x))):  # fmt: skip
            entries = at.sg.buffer(f"contrast.memory_{side}")
            mean = (entries[batch.index] + formulas.embed(at, side, f)) / 2
            entries[batch.index] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
            actual = at.buffer(f"contrast.memory_{side}")
            np.testing.assert_allclose(actual, entries, rtol=1e-12)
        assert at.buffer("contrast.memory_y")[batch.index].tolist() == batch.y.tolist()
        optimiser.zero_grad()
        contract.total(terms).backward()
        optimiser.step()
    assert (at.buffer("contrast.memory_y") >= 0).sum() == len(LABELS) + 4


def test_crd_s_negatives_are_of_other_classes() -> None:
    part = MemoryContrast(5, 7, 32, 0.07, "nce", num_train=40, negatives=20)
    part.memory_y.copy_(torch.arange(40) % 4)
    y = torch.tensor([0, 1, 2])
    positions = set()
    for _ in range(50):
        drawn, allowed = part._draw_negatives(part.memory_y, y)
        assert drawn.shape == (3, 20)
        assert allowed.all()
        assert (part.memory_y[drawn] != y[:, None]).all()
        assert all(len(set(row)) == 20 for row in drawn.tolist())
        positions |= set(drawn[0].tolist())
    assert positions == {i for i in range(40) if i % 4 != 0}
    # Fewer than asked for: all of them.
    part.memory_y.fill_(0)[5] = 1
    drawn, allowed = part._draw_negatives(part.memory_y, y[:1])
    assert drawn[allowed].tolist() == [5]


def test_crd_s_memory_starts_as_long_as_unit_vectors() -> None:
    part = MemoryContrast(5, 7, 128, 0.07, "nce", num_train=500, negatives=20)
    for memory in (part.memory_s, part.memory_t):
        assert memory.abs().max() <= (3 / 128) ** 0.5
        assert memory.norm(dim=1).mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("switch", "message"), [({"bank": 16}, "one of them"), ({"symmetric": False}, "symmetric")]
)
def test_crd_refuses_switches_that_contradict_the_memory(
    switch: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Crd(memory=16384, **switch)


# --- Specs


@pytest.mark.parametrize(
    ("case", "switches"),
    [
        *((method(), set()) for method in (Mart, Trades, Ciard, Absld, FairRslad, Bmtard, Crd)),
        (Trades(script_passes=True), {"script_passes"}),
        (Crd(memory=16384), {"memory"}),
    ],
    ids=str,
)
def test_specs_of_before_the_switches_keep_their_values(case: Method, switches: set[str]) -> None:
    """A spec states these switches where they are on."""
    later = {"script_passes", "class_sums", "early_weights", "memory"}
    values = spec_values(case)
    assert values.keys() & later == switches
    assert type(case)(**values) == case


# --- One image in a batch

CONTRASTS = (Crd(), Crd(memory=16384), CrdAdv(), Gacd(), Gacd(bank=16), Gacd(symmetric=True),
             Gacd(estimator="infonce"), Gacd(student_input="both"))  # fmt: skip


@pytest.mark.parametrize("case", CONTRASTS, ids=label)
def test_a_first_batch_of_one_image(case: Method) -> None:
    """The loss and its gradient are finite, and the next batch sets Z as a first one does."""
    batch, nets = flat_batch(), flat_nets(case)
    single = epoch_of([1])
    total = contract.total(contract.terms(case, nets, single))
    total.backward()
    assert total.isfinite()
    assert all(value.grad.isfinite().all() for value in nets.student.parameters())
    if not isinstance(nets.parts["contrast"], MemoryContrast):
        fresh = flat_nets(case)
        for each in (nets, fresh):
            torch.manual_seed(0)
            contract.terms(case, each, batch)
        z = [each.parts["contrast"].get_buffer("log_z") for each in (nets, fresh)]
        assert torch.equal(*z)
