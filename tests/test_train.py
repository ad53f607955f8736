"""The training loop: schedule, averaging, choice of the checkpoint, resuming at any epoch, what stops it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import models
from bench.datasets import loading
from bench.protocol import suites
from bench.protocol.spec import Spec
from bench.protocol.suites import Training
from bench.system.errors import BenchError, UsageError
from bench.training.trainer import State, Trainer, TrainingModule, derive_seed
from methods.base import Method, Nets
from methods.kd import Kd
from methods.natural import Natural
from methods.pgd_at import PgdAt


@dataclasses.dataclass(frozen=True)
class Scaled(PgdAt):
    """The last layer at half the rate."""

    def param_groups(self, nets: Nets) -> list[dict[str, Any]]:
        *rest, weight, bias = nets.student.parameters()
        return [{"params": rest}, {"params": [weight, bias], "scale": 0.5, "momentum": 0.1}]


DATA = loading.load_data("digits", "unused", limit_train=128, limit_test=40, limit_val=40)
QUICK = Training(epochs=3, batch=32, lr=0.1, schedule="onecycle", ema_decay=0.5)


def spec(**changes: Any) -> Spec:
    suite = suites.DIGITS
    values: dict[str, Any] = dict.fromkeys(("suite", "dataset", "method"), "digits")
    values |= {
        "role": "student",
        "arch": "resnet8-w4",
        "hyper": {},
        "teachers": {},
        "seed": 0,
        "training": QUICK,
    }
    values |= {"eps": suite.eps, "inner_step": suite.inner_step, "inner_steps": 2, "attacks": ()}
    return Spec(**values | {"full_checkpoints": (), "precision": "fp32"} | changes)


def trainer(work: Path, method: Method | None = None, **changes: Any) -> Trainer:
    work.mkdir(exist_ok=True)
    found = spec(**changes)
    torch.manual_seed(derive_seed("init", found.seed))
    student = models.build(found.arch, DATA.info)
    teachers = {"robust": models.build("resnet8-w8", DATA.info)}
    return Trainer(
        TrainingModule(method or PgdAt(), student, teachers, len(DATA.train)), DATA, found, work
    )


def one_step(run: Trainer) -> None:
    """The first of a run."""
    run.set_learning_rates(0)
    run.step_function(0)(run.epoch_batches()[0])


def ignore(*_: object) -> None:
    pass


def weights(path: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return saved


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    ("training", "rates"),
    [
        (Training(epochs=4, lr=1.0, milestones=(0.5, 0.75)), [1.0, 1.0, 0.1, 0.01]),
        (Training(epochs=4, lr=1.0, milestones=()), [1.0] * 4),
        (
            Training(epochs=10, lr=0.7, schedule="onecycle"),
            [0.7 / 3, 1.4 / 3, 0.7, *(0.7 - 0.1 * i for i in range(7))],
        ),
    ],
)
def test_schedule(training: Training, rates: list[float]) -> None:
    assert [training.rate(step, len(rates)) for step in range(len(rates))] == pytest.approx(rates)


def test_seeds_differ_by_every_part_and_fit_torch() -> None:
    seeds = {derive_seed(*parts) for parts in ((0, 1), (1, 0), ("0", 1), (0, 1, 2), (1,))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("killed_after", "arch"),
    [(1, "resnet8-w4"), (2, "resnet8-w4"), (3, "resnet8-w4"), (2, "resnet8-w16")],
)
def test_a_killed_run_resumes_and_ends_with_the_same_bits(
    killed_after: int, arch: str, tmp_path: Path
) -> None:
    """Killed in the epoch after `killed_after`, by an exception out of the progress call; the last lies channels-last."""
    rows: list[dict[str, float]] = []
    trainer(tmp_path / "whole", arch=arch).fit(lambda row, step: rows.append(row), ignore)

    def kill(stage: str, done: int, total: int) -> None:
        if done == killed_after * 4 - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "killed", arch=arch).fit(ignore, kill)
    torch.rand(7)
    again: list[dict[str, float]] = []
    trainer(tmp_path / "killed", arch=arch).fit(lambda row, step: again.append(row), ignore)
    assert again == rows
    for name in ("best", "last", "ema", "swa"):
        assert same(tmp_path / "whole" / f"{name}.pt", tmp_path / "killed" / f"{name}.pt")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    trainer(tmp_path).fit(ignore, ignore)
    ticks: list[int] = []
    trainer(tmp_path).fit(ignore, lambda *parts: ticks.append(1))
    assert ticks == []


def test_a_damaged_state_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"half")
    with pytest.raises(
        BenchError, match=r"state\.pt' is not a checkpoint .*; --force restarts the run"
    ):
        trainer(tmp_path).fit(ignore, ignore)


def test_seed_alone_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer(tmp_path / name, seed=seed).fit(ignore, ignore)
    assert same(tmp_path / "a" / "last.pt", tmp_path / "b" / "last.pt")
    assert not same(tmp_path / "a" / "last.pt", tmp_path / "c" / "last.pt")


def test_best_is_the_epoch_with_the_best_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.9, 0.1), (0.5, 0.4), (0.6, 0.3)])
    monkeypatch.setattr("bench.training.trainer.clean_and_robust_accuracy", lambda *_: next(scores))
    lasts: list[dict[str, torch.Tensor]] = []
    run = trainer(tmp_path)
    run.fit(
        lambda row, step: lasts.append(
            {k: v.clone() for k, v in run.module.student.state_dict().items()}
        ),
        ignore,
    )
    best = weights(tmp_path / "best.pt")
    assert [all(torch.equal(best[k], v) for k, v in last.items()) for last in lasts] == [
        False,
        True,
        False,
    ]


def test_best_by_clean_validation_where_nothing_is_attacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.9, 0.1), (0.5, 0.4), (0.6, 0.3)])
    monkeypatch.setattr("bench.training.trainer.clean_and_robust_accuracy", lambda *_: next(scores))
    state: State = trainer(tmp_path, Natural()).fit(ignore, ignore)
    assert state.best == 0.9


def test_averaging(tmp_path: Path) -> None:
    training = dataclasses.replace(QUICK, epochs=4, swa_start=0.5)
    run = trainer(tmp_path, Natural(), training=training)
    snapshots = []
    name = "linear.weight"
    step = run.update

    def follow(batch: Any) -> dict[str, torch.Tensor]:
        terms = step(batch)
        snapshots.append(run.module.student.get_parameter(name).detach().clone())
        return terms

    run.update = follow  # type: ignore[method-assign]
    run.fit(ignore, ignore)
    ema = snapshots[0]
    for snapshot in snapshots[1:]:
        ema = 0.5 * ema + 0.5 * snapshot
    torch.testing.assert_close(weights(tmp_path / "ema.pt")[name], ema)
    torch.testing.assert_close(
        weights(tmp_path / "swa.pt")[name], torch.stack(snapshots[3::4][2:]).mean(dim=0)
    )


@pytest.mark.parametrize("averaging", [(), ("swa",)])
def test_averages_that_are_not_asked_for(averaging: tuple[str, ...], tmp_path: Path) -> None:
    trainer(
        tmp_path, Natural(), training=dataclasses.replace(QUICK, averaging=averaging, epochs=1)
    ).fit(ignore, ignore)
    assert {path.stem for path in tmp_path.glob("*.pt")} == {"state", "best", "last", *averaging}
    if averaging:  # the average of one epoch is that epoch
        assert same(tmp_path / "swa.pt", tmp_path / "last.pt")


def test_groups_have_their_own_rate_and_momentum(tmp_path: Path) -> None:
    run = trainer(tmp_path, Scaled())
    one_step(run)
    rate = QUICK.rate(0, 12)
    assert [group["lr"] for group in run.optimiser.param_groups] == [rate, 0.5 * rate]
    assert [group["momentum"] for group in run.optimiser.param_groups] == [QUICK.momentum, 0.1]


def test_awp_changes_the_step_and_nothing_else(tmp_path: Path) -> None:
    """The same images, the gradient at other weights, BatchNorm's statistics moved once."""
    plain, moved = (
        trainer(tmp_path, training=dataclasses.replace(QUICK, awp=gamma)) for gamma in (0.0, 0.01)
    )
    for run in (plain, moved):
        torch.manual_seed(0)
        one_step(run)
    one, other = (run.module.student.state_dict() for run in (plain, moved))
    assert one["conv1.weight"].ne(other["conv1.weight"]).any()
    torch.testing.assert_close(one["conv1.weight"], other["conv1.weight"], atol=0.02, rtol=0)
    assert {int(state["bn1.num_batches_tracked"]) for state in (one, other)} == {1}


def test_teachers_stay_as_they_are(tmp_path: Path) -> None:
    run = trainer(tmp_path, Kd())
    teacher = run.module.nets.teacher
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    run.fit(ignore, ignore)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any("teacher" in key for key in run.module.state_dict())


def test_what_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, Natural(), training=dataclasses.replace(QUICK, lr=1e30))
    with pytest.raises(
        BenchError, match=r"ce became (nan|inf) in epoch \d; a lower learning rate may help"
    ):
        run.fit(ignore, ignore)


def test_a_batch_larger_than_the_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch of 200 is larger than the 128 training images"):
        trainer(tmp_path, training=dataclasses.replace(QUICK, batch=200))


def test_bf16_trains(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    trainer(tmp_path, precision="bf16").fit(lambda row, step: rows.append(row), ignore)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[-1]["train/ce_adv"] < rows[0]["train/ce_adv"]
