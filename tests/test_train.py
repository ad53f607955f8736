"""The training loop: schedule, averages, choice of the checkpoint, resuming, stopping."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from specs import make_spec
from torch import Tensor, nn

from bench import models
from bench.datasets import loading
from bench.execution.job import epoch_metrics
from bench.system.errors import BenchError, UsageError
from bench.training.schedule import learning_rate
from bench.training.trainer import Trainer, TrainingModule, derive_seed
from leaderboards.schema.spec import Training
from methods.base import Batch, Method, Net, Nets
from methods.kd import Kd
from methods.natural import Natural
from methods.pgd_at import PgdAt

DATA = loading.load_data("digits", "unused", limit_train=128, limit_test=40, limit_val=40)
SHORT = Training(epochs=3, batch=32, lr=0.1, schedule="onecycle", ema_decay=0.5)
STEPS_PER_EPOCH = 4


@dataclasses.dataclass(frozen=True)
class SlowHead(PgdAt):
    """PGD-AT whose last layer learns at half the rate and has its own momentum."""

    def param_groups(self, nets: Nets) -> list[dict[str, Any]]:
        *body, weight, bias = nets.student.parameters()
        return [{"params": body}, {"params": [weight, bias], "scale": 0.5, "momentum": 0.1}]


def make_trainer(
    folder: Path, method: Method | None = None, training: Training = SHORT, **changes: Any
) -> Trainer:
    """Return a trainer of PGD-AT or another method; `changes` are fields of the spec."""
    folder.mkdir(exist_ok=True)
    spec = make_spec(training, **changes)
    torch.manual_seed(derive_seed("init", spec.seed))
    student = models.build(spec.arch, DATA.info)
    teachers = {"robust": models.build("resnet8-w8", DATA.info)}
    module = TrainingModule(method or PgdAt(), student, teachers, len(DATA.train))
    return Trainer(module, DATA, spec, folder)


class Monitored(nn.Module):
    """A part with a buffer that a method fills."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))


@dataclasses.dataclass(frozen=True)
class MeanPixel(Natural):
    """Natural training that logs the mean pixel of its batches."""

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"monitored": Monitored()}

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        nets.parts["monitored"].get_buffer("mean").copy_(batch.x.mean())
        return super().loss(nets, batch, adv)

    def monitor(self, nets: Nets) -> dict[str, Tensor]:
        return {"pixel": nets.parts["monitored"].get_buffer("mean")}


def take_first_step(trainer: Trainer) -> None:
    trainer.set_learning_rates(0)
    run_step = trainer.step_function(0)
    run_step(trainer.epoch_batches()[0])


def ignore(*_: object) -> None:
    pass


def fit_and_log(trainer: Trainer) -> list[dict[str, float]]:
    """Train and return the logged metrics of each epoch."""
    rows: list[dict[str, float]] = []
    trainer.fit(lambda row, step: rows.append(row), ignore)
    return rows


def load_weights(path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return weights


def weights_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    if left.keys() != right.keys():
        return False
    return all(torch.equal(left[key], right[key]) for key in left)


def files_equal(left: Path, right: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit by bit."""
    return weights_equal(load_weights(left), load_weights(right))


def test_what_a_method_monitors_is_logged_as_the_mean_of_an_epoch(tmp_path: Path) -> None:
    """Beside the terms of the loss, which it is not added to."""
    trainer = make_trainer(tmp_path, MeanPixel())
    means: list[float] = []
    make_batch = trainer.make_batch

    def make_batch_and_keep(index: Tensor, epoch: int) -> Batch:
        batch = make_batch(index, epoch)
        means.append(batch.x.mean().item())
        return batch

    trainer.make_batch = make_batch_and_keep  # type: ignore[method-assign]
    rows = fit_and_log(trainer)
    plain = fit_and_log(make_trainer(tmp_path / "plain", Natural()))
    for epoch, row in enumerate(rows):
        steps = means[epoch * STEPS_PER_EPOCH :][:STEPS_PER_EPOCH]
        assert row["monitor/pixel"] == pytest.approx(sum(steps) / STEPS_PER_EPOCH, rel=1e-6)
        assert {**plain[epoch], "monitor/pixel": row["monitor/pixel"]} == row
    assert epoch_metrics(rows[0])["train/loss"] == pytest.approx(rows[0]["train/ce"])


@pytest.mark.parametrize(
    ("training", "rates"),
    [
        (Training(epochs=4, lr=1.0, milestones=(0.5, 0.75)), [1.0, 1.0, 0.1, 0.01]),
        (Training(epochs=4, lr=1.0, milestones=()), [1.0] * 4),
        (
            Training(epochs=10, lr=0.7, schedule="onecycle"),
            [0.7 / 3, 1.4 / 3, 0.7, *(0.7 - 0.1 * i for i in range(7))],
        ),
        # Half a cosine over all steps, and over the second half of them.
        (
            Training(epochs=3, lr=2.0, schedule="cosine", milestones=(0.0,)),
            [2.0, 1.5, 0.5],
        ),
        (
            Training(epochs=4, lr=2.0, schedule="cosine", milestones=(0.5,)),
            [2.0, 2.0, 2.0, 1.0],
        ),
        (Training(epochs=1, lr=2.0, schedule="cosine", milestones=(1.0,)), [2.0]),
    ],
)
def test_schedule(training: Training, rates: list[float]) -> None:
    scheduled = [learning_rate(training, step, len(rates)) for step in range(len(rates))]
    assert scheduled == pytest.approx(rates)


def test_seeds_differ_by_every_part_and_fit_torch() -> None:
    parts = ((0, 1), (1, 0), ("0", 1), (0, 1, 2), (1,))
    seeds = {derive_seed(*values) for values in parts}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("killed_after", "arch"),
    [
        (1, "resnet8-w4"),
        (2, "resnet8-w4"),
        (3, "resnet8-w4"),
        # Wide enough for channels-last weights.
        (2, "resnet8-w16"),
    ],
)
def test_a_killed_run_resumes_and_ends_with_the_same_bits(
    killed_after: int, arch: str, tmp_path: Path
) -> None:
    """An exception in the progress call kills the run in the epoch after `killed_after`."""
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    rows = fit_and_log(make_trainer(unbroken, arch=arch))

    def kill(stage: str, done: int, total: int) -> None:
        if done == killed_after * STEPS_PER_EPOCH - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(killed, arch=arch).fit(ignore, kill)
    # The state of the random generator must not matter.
    torch.rand(7)
    assert fit_and_log(make_trainer(killed, arch=arch)) == rows
    for name in ("best", "last", "ema", "swa"):
        assert files_equal(unbroken / f"{name}.pt", killed / f"{name}.pt")


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(ignore, ignore)
    ticks: list[int] = []
    make_trainer(tmp_path).fit(ignore, lambda *_: ticks.append(1))
    assert ticks == []


def test_a_damaged_state_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"half")
    message = r"state\.pt' is text and not a checkpoint, .*; --force restarts the run"
    with pytest.raises(BenchError, match=message):
        make_trainer(tmp_path).fit(ignore, ignore)


def test_only_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_trainer(tmp_path / name, seed=seed).fit(ignore, ignore)
    assert files_equal(tmp_path / "a" / "last.pt", tmp_path / "b" / "last.pt")
    assert not files_equal(tmp_path / "a" / "last.pt", tmp_path / "c" / "last.pt")


@pytest.fixture
def scripted_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace validation: the first epoch has the best clean, the second the best robust score."""
    scores = iter([(0.9, 0.1), (0.5, 0.4), (0.6, 0.3)])
    monkeypatch.setattr("bench.training.trainer.clean_and_robust_accuracy", lambda *_: next(scores))


@pytest.mark.usefixtures("scripted_validation")
def test_best_is_the_epoch_with_the_best_robust_validation(tmp_path: Path) -> None:
    epochs: list[dict[str, Tensor]] = []
    trainer = make_trainer(tmp_path)

    def keep_weights(row: dict[str, float], epoch: int) -> None:
        epochs.append(copy.deepcopy(trainer.module.student.state_dict()))

    trainer.fit(keep_weights, ignore)
    best = load_weights(tmp_path / "best.pt")
    assert [weights_equal(best, weights) for weights in epochs] == [False, True, False]


@pytest.mark.usefixtures("scripted_validation")
def test_best_is_by_clean_validation_without_an_attack(tmp_path: Path) -> None:
    state = make_trainer(tmp_path, Natural()).fit(ignore, ignore)
    assert state.best == 0.9


def test_averages(tmp_path: Path) -> None:
    """EMA follows every step; SWA is the mean of the ends of the last two epochs of four."""
    training = dataclasses.replace(SHORT, epochs=4, swa_start=0.5)
    trainer = make_trainer(tmp_path, Natural(), training=training)
    name = "linear.weight"
    weight = trainer.module.student.get_parameter(name)
    snapshots = []
    update = trainer.update

    def update_and_keep(batch: Batch) -> dict[str, Tensor]:
        terms = update(batch)
        snapshots.append(weight.detach().clone())
        return terms

    trainer.update = update_and_keep  # type: ignore[method-assign]
    trainer.fit(ignore, ignore)
    ema = snapshots[0]
    for snapshot in snapshots[1:]:
        ema = 0.5 * ema + 0.5 * snapshot
    torch.testing.assert_close(load_weights(tmp_path / "ema.pt")[name], ema)
    epoch_ends = snapshots[STEPS_PER_EPOCH - 1 :: STEPS_PER_EPOCH]
    swa = torch.stack(epoch_ends[2:]).mean(dim=0)
    torch.testing.assert_close(load_weights(tmp_path / "swa.pt")[name], swa)


def test_averaging_begins_with_the_stated_epoch(tmp_path: Path) -> None:
    """28 of 100 is 28, though 100 * (29 / 100) is less than 29 in floating point."""
    trainer = make_trainer(
        tmp_path, training=dataclasses.replace(SHORT, epochs=100, swa_start=0.29)
    )
    for epoch in range(100):
        trainer._update_swa(epoch)
    assert int(trainer.averages["swa"].state_dict()["n_averaged"]) == 71


def test_the_incomplete_last_batch(tmp_path: Path) -> None:
    """It is dropped, or the last of an epoch in which every image occurs once."""
    num_train = len(DATA.train)
    for drop_last in (True, False):
        training = dataclasses.replace(SHORT, batch=50, drop_last=drop_last)
        trainer = make_trainer(tmp_path, training=training)
        batches = trainer.epoch_batches()
        sizes = [len(batch) for batch in batches]
        assert sizes == [50] * (num_train // 50) + [num_train % 50] * (not drop_last)
        assert len(torch.cat([*batches]).unique()) == sum(sizes)
        assert trainer.steps_per_epoch == len(batches)
    assert fit_and_log(trainer)[-1]["epoch"] == SHORT.epochs - 1


def test_nesterov_and_the_start_of_attacks_reach_training(tmp_path: Path) -> None:
    training = dataclasses.replace(SHORT, nesterov=True, clamp_start=False)
    for trainer, is_changed in (
        (make_trainer(tmp_path), False),
        (make_trainer(tmp_path, training=training), True),
    ):
        assert trainer.optimiser.defaults["nesterov"] is is_changed
        assert trainer.budget.clamp_start is not is_changed


@pytest.mark.parametrize("averaging", [(), ("swa",)])
def test_only_requested_averages_are_saved(averaging: tuple[str, ...], tmp_path: Path) -> None:
    training = dataclasses.replace(SHORT, averaging=averaging, epochs=1)
    make_trainer(tmp_path, Natural(), training=training).fit(ignore, ignore)
    names = {path.stem for path in tmp_path.glob("*.pt")}
    assert names == {"state", "best", "last", *averaging}
    if averaging:
        # The average of one epoch is that epoch.
        assert files_equal(tmp_path / "swa.pt", tmp_path / "last.pt")


def test_parameter_groups_have_their_own_rate_and_momentum(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, SlowHead())
    take_first_step(trainer)
    groups = trainer.optimiser.param_groups
    rate = learning_rate(SHORT, 0, 12)
    assert [group["lr"] for group in groups] == [rate, 0.5 * rate]
    assert [group["momentum"] for group in groups] == [SHORT.momentum, 0.1]


def test_awp_changes_the_step_and_nothing_else(tmp_path: Path) -> None:
    """The images are the same, the gradient is at other weights, BatchNorm updates once."""
    states = []
    for gamma in (0.0, 0.01):
        trainer = make_trainer(tmp_path, training=dataclasses.replace(SHORT, awp=gamma))
        torch.manual_seed(0)
        take_first_step(trainer)
        states.append(trainer.module.student.state_dict())
    plain, perturbed = states
    assert plain["conv1.weight"].ne(perturbed["conv1.weight"]).any()
    torch.testing.assert_close(plain["conv1.weight"], perturbed["conv1.weight"], atol=0.02, rtol=0)
    assert int(plain["bn1.num_batches_tracked"]) == 1
    assert int(perturbed["bn1.num_batches_tracked"]) == 1


def test_teachers_stay_as_they_are(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Kd())
    teacher = trainer.module.nets.teacher
    before = copy.deepcopy(teacher.state_dict())
    trainer.fit(ignore, ignore)
    assert weights_equal(teacher.state_dict(), before)
    assert not any("teacher" in key for key in trainer.module.state_dict())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Natural(), training=dataclasses.replace(SHORT, lr=1e30))
    message = r"ce became (nan|inf) in epoch \d; a lower learning rate may help"
    with pytest.raises(BenchError, match=message):
        trainer.fit(ignore, ignore)


def test_a_batch_larger_than_the_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch of 200 is larger than the 128 training images"):
        make_trainer(tmp_path, training=dataclasses.replace(SHORT, batch=200))


def test_bf16_trains(tmp_path: Path) -> None:
    rows = fit_and_log(make_trainer(tmp_path, precision="bf16"))
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
    assert rows[-1]["train/ce_adv"] < rows[0]["train/ce_adv"]
