"""Training on two processes: the update of one process on the whole batch, and torchrun."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.multiprocessing
from mlflow import MlflowClient
from specs import make_spec
from torch import Tensor, nn

import methods
from bench import models
from bench.datasets import loading
from bench.datasets.splits import Data
from bench.system.errors import BenchError, UsageError
from bench.training import distributed, memory_layout, trainer
from bench.training.distributed import ProcessGroup
from bench.training.trainer import Trainer, TrainingModule
from leaderboards.schema.spec import Training
from methods import inner
from methods.base import Batch, Budget, Method, Net, Nets, kl, official_values
from methods.bmtard import Bmtard
from methods.ciard import Ciard
from methods.contract import label
from methods.crd import Crd
from methods.crd_adv import CrdAdv
from methods.gacd import Gacd
from methods.igdm import Igdm
from methods.inner import ce, pgd
from methods.saad import Saad

DATA = loading.load_data("digits", "unused", limit_train=160, limit_test=40, limit_val=40)
# Branches whose state or loss is of several images, beside every method's defaults and switches.
# Queues of 40 take a batch of 32 and a part of the next one.
BRANCHES = (
    *(Crd(bank=40), CrdAdv(bank=40, estimator="infonce"), CrdAdv(estimator="infonce")),
    *(Gacd(bank=40, student_input="both"), Gacd(symmetric=True, weigh="positive")),
    *(Gacd(bank=40, weight="indicator", inner="feature"), Gacd(bank=40, two_stage=True)),
    *(Igdm(base="absld"), Bmtard(rate=0.1), Ciard(rate=0.1, begin=0.0), Saad(beta=0.2)),
    Saad(beta=0.2, shifted=True),
)


class Plain(Net):
    """Without BatchNorm, whose statistics are those of a part of the batch on each process."""

    def __init__(self) -> None:
        super().__init__((0.0,), (1.0,))
        # Nothing to fold, and to look for it takes longer than an epoch.
        self.fold_batchnorm = False
        self.width, self.num_classes = 16, 10
        self.hidden, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = torch.tanh(self.hidden(x.flatten(1)))
        return features

    def head(self, f: Tensor) -> Tensor:
        logits: Tensor = self.last(f)
        return logits


class Normed(Plain):
    """With BatchNorm before and behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.hidden = nn.Linear(256, 16)

    def features(self, x: Tensor) -> Tensor:
        return super().features(self.second(torch.relu(self.first(self.conv(x)))))


@dataclasses.dataclass(frozen=True)
class Steady(Method):
    """KL(T(x) || S(x~)) + CE(S(x), y), an attack without random numbers, a moving buffer."""

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"pixels": nn.BatchNorm1d(1, affine=False)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, start="none")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        nets.parts["pixels"](batch.x.flatten()[:, None])
        return {
            "kl": kl(nets.teacher_logits(batch), nets.student(adv)).mean(),
            "ce": nn.functional.cross_entropy(nets.student(batch.x), batch.y),
        }


def train_student(work: Path, group: ProcessGroup, student: type[Net]) -> dict[str, Tensor]:
    """Return state and losses after two epochs of five batches of 32."""
    torch.manual_seed(0)
    module = TrainingModule(Steady(), student(), {"robust": Plain()}, len(DATA.train))
    return fit(module, DATA, work, group, epochs=2)


def fit(
    module: TrainingModule, images: Data, work: Path, group: ProcessGroup, epochs: int
) -> dict[str, Tensor]:
    """Return state and last row of losses after training in batches of 32."""
    work.mkdir(exist_ok=True)
    spec = make_spec(Training(epochs=epochs, batch=32, lr=0.1, averaging=("ema",)))
    rows: list[dict[str, float]] = []
    runner = Trainer(module, images, spec, work, group)
    runner.fit(lambda row, _: rows.append(row), lambda *_: None)
    last_row = rows[-1] if rows else {}
    losses = {key: torch.tensor(value) for key, value in last_row.items()}
    ema = runner.averages["ema"].module.state_dict()
    return {**module.state_dict(), **{f"ema.{key}": value for key, value in ema.items()}, **losses}


def join_pair(rank: int, work: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{work}/meeting", rank=rank, world_size=2
    )


def load_pair(work: Path) -> tuple[Any, Any]:
    """Return what the two processes saved."""
    first, second = (torch.load(work / f"{rank}.pt", weights_only=True) for rank in range(2))
    return first, second


def train_in_pair(rank: int, work: Path, student: type[Net]) -> None:
    join_pair(rank, work)
    state = train_student(work / "two", ProcessGroup(rank, 2), student)
    torch.save(state, work / f"{rank}.pt")
    distributed.leave_process_group()


@pytest.mark.parametrize("student", [Plain, Normed])
def test_two_processes_make_the_update_of_one(student: type[Net], tmp_path: Path) -> None:
    """Weights, buffers and logged losses; with BatchNorm, each normalises its part alone."""
    expected = train_student(tmp_path / "one", distributed.SINGLE_PROCESS, student)
    torch.multiprocessing.spawn(train_in_pair, (tmp_path, student), nprocs=2)
    first, second = load_pair(tmp_path)
    for key in second:
        assert torch.equal(first[key], second[key]), key
    # The variance of the pixels is that of half a batch.
    compared = [key for key in expected if "pixels" not in key or "mean" in key]
    if student is Normed:
        assert max((first[key] - expected[key]).abs().max() for key in compared) > 0.01
        return
    for key in compared:
        torch.testing.assert_close(first[key], expected[key], rtol=1e-4, atol=1e-6, msg=key)
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]


def cases() -> dict[str, Method]:
    """Return every method at its defaults and with the authors' switches, and the branches."""
    cases: dict[str, Method] = {}
    for name in methods.builtin():
        method_class = methods.load(name)
        cases[name] = method_class()
        if official := official_values(method_class):
            cases[f"{name} official"] = method_class(**official)
    return cases | {label(case): case for case in BRANCHES}


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Inside, images are of double precision and each attack begins with the same noise."""

    def in_double(pixels: Tensor) -> Tensor:
        return pixels.double() / 255

    def fixed_noise(x: Tensor, budget: Budget, _: object) -> Tensor:
        waves = torch.arange(x[0].numel(), dtype=x.dtype).sin()
        return (0.1 * budget.eps * waves).view_as(x[0]).expand_as(x)

    with (
        mock.patch.object(trainer, "to_float", in_double),
        mock.patch.object(inner, "_start_noise", fixed_noise),
    ):
        yield


def sure_teacher() -> Net:
    """Return a teacher that is sure of some images, of which both parts have other ones."""
    teacher = Plain().double()
    with torch.no_grad():
        teacher.last.weight.mul_(10)
    return teacher


def train_cases(work: Path, group: ProcessGroup) -> dict[str, dict[str, Tensor]]:
    """Return each case's state and losses after two epochs of two batches of 32."""
    few = loading.load_data("digits", "unused", limit_train=64, limit_test=10, limit_val=10)
    states = {}
    with exact_arithmetic():
        for name, case in cases().items():
            torch.manual_seed(0)
            teachers: dict[str, Net] = {role: sure_teacher() for role in case.teacher_roles}
            module = TrainingModule(case, Plain().double(), teachers, len(few.train)).double()
            states[name] = fit(module, few, work / f"{name}-{group.size}", group, epochs=2)
    return states


def train_cases_in_pair(rank: int, work: Path) -> None:
    join_pair(rank, work)
    torch.save(train_cases(work, ProcessGroup(rank, 2)), work / f"{rank}.pt")
    distributed.leave_process_group()


@pytest.fixture(scope="module")
def trained_cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """Return the states of one process, and of the two of a pair."""
    work = tmp_path_factory.mktemp("cases")
    torch.multiprocessing.spawn(train_cases_in_pair, (work,), nprocs=2)
    return train_cases(work, distributed.SINGLE_PROCESS), *load_pair(work)


@pytest.mark.parametrize("name", cases())
def test_every_method_has_the_state_of_one_process(
    name: str, trained_cases: tuple[Any, Any, Any]
) -> None:
    """Weights, queues, statistics and losses, over an epoch's end and to the next one's."""
    one, first, second = (states[name] for states in trained_cases)
    for key, value in second.items():
        assert torch.equal(value, first[key]), key
    for key, value in one.items():
        torch.testing.assert_close(first[key], value, rtol=1e-7, atol=1e-10, msg=key)


def train_every_method(rank: int, work: Path) -> None:
    """Save, for each method, the student's state after one step on two processes."""
    join_pair(rank, work)
    few = loading.load_data("digits", "unused", limit_train=32, limit_test=10, limit_val=10)
    states = {}
    for name in methods.builtin():
        method_class = methods.load(name)
        for official in (False, True):
            method = method_class(**official_values(method_class) if official else {})
            torch.manual_seed(0)
            teachers = {role: models.build("resnet8-w4", few.info) for role in method.teacher_roles}
            student = models.build("resnet8-w4", few.info)
            module = TrainingModule(method, student, teachers, len(few.train))
            fit(module, few, work / f"{name}-{official}", ProcessGroup(rank, 2), epochs=1)
            values = [value.flatten() for value in student.state_dict().values()]
            states[f"{name} {official}"] = torch.cat(values)
    torch.save(states, work / f"{rank}.pt")
    distributed.leave_process_group()


@pytest.mark.slow
def test_every_method_takes_the_same_passes_in_both_processes(tmp_path: Path) -> None:
    """BatchNorm's counters tell of passes; synchronised BatchNorm would wait for ever."""
    torch.multiprocessing.spawn(train_every_method, (tmp_path,), nprocs=2)
    first, second = load_pair(tmp_path)
    assert len(first) == 2 * len(methods.builtin())
    for name, state in first.items():
        assert torch.equal(state, second[name]), name


def test_batchnorm_is_synchronised_in_student_and_parts() -> None:
    """torch.nn.SyncBatchNorm with the same parameters; it trains on CUDA alone."""
    module = TrainingModule(Steady(), Normed(), {"robust": Normed()}, len(DATA.train))
    state = module.state_dict()
    assert distributed.synchronise_batchnorm(module) == "BatchNorm synchronised"
    kinds = {type(layer).__name__ for layer in module.modules() if "BatchNorm" in str(type(layer))}
    assert kinds == {"SyncBatchNorm"}
    assert module.nets.student is module.student
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch of 32 cannot be shared by 3 devices"):
        train_student(tmp_path, ProcessGroup(0, 3), Plain)


@pytest.mark.parametrize("group", [ProcessGroup(0, 2), ProcessGroup(0, 2, sync_batchnorm=True)])
def test_a_run_goes_on_with_as_many_devices(group: ProcessGroup, tmp_path: Path) -> None:
    """Whoever resumes: a record of a mixture would tell of the last devices alone."""
    train_student(tmp_path, distributed.SINGLE_PROCESS, Plain)
    message = f"begun on 1 device, not on {group.description}: go on as it began"
    with pytest.raises(BenchError, match=message):
        train_student(tmp_path, group, Plain)
    message = r"begun on 2 devices.*, not on 1 device: go on as it began"
    with pytest.raises(BenchError, match=message):
        distributed.SINGLE_PROCESS.check_same_group(group.description)
    group.check_same_group(group.description)


def torchrun(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2 -m bench"
    command = [sys.executable, *launcher.split(), *words.split()]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.e2e
def test_the_whole_program_on_two_processes(tmp_path: Path) -> None:
    """A teacher and its student, recorded once; the same command again has nothing to do."""
    words = (
        "run --suite digits --method rslad --student resnet8-w4 --epochs 1 --seeds 0 "
        "--limit-train 200 --limit-test 40"
    )
    done = torchrun(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 to do, 0 already recorded" in done.stderr
    assert done.stderr.count("[2/2]") >= 1
    repeated = torchrun(words, tmp_path)
    assert repeated.returncode == 0, repeated.stderr
    assert "0 to do, 2 already recorded" in repeated.stderr
    export = [sys.executable, "-m", "bench", "export", "--suite", "digits", "--out", "out"]
    exported = subprocess.run(export, cwd=tmp_path, capture_output=True, text=True)
    assert exported.returncode == 0, exported.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    assert len(records) == 2
    (student,) = [record for record in records if record["spec"]["role"] == "student"]
    command = student["tags"]["command"]
    assert command.startswith("torchrun --nproc-per-node 2 -m bench run --method rslad ")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.role != 'group'")
    memory = ", memory kept" if memory_layout.keep_freed_memory() else ""
    assert {run.data.tags.get("training_path") for run in runs} == {
        f"2 devices, channels-last{memory}",
        f"2 devices{memory}",
    }


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--workers 2", "--workers under torchrun"),
        ("--sync-batchnorm --device cpu", "--sync-batchnorm needs CUDA devices"),
    ],
)
def test_what_several_devices_refuse(flag: str, message: str, tmp_path: Path) -> None:
    done = torchrun(f"run --suite digits --method natural --student resnet8-w4 {flag}", tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
