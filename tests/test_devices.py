"""One run on two processes: the same update as one process makes of the whole batch; the whole program under torchrun."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from mlflow import MlflowClient
from torch import Tensor, nn

import methods
from bench import models
from bench.datasets import loading
from bench.datasets.splits import Data
from bench.protocol.spec import Spec
from bench.protocol.suites import Training
from bench.system.errors import BenchError, UsageError
from bench.training import acceleration, devices
from bench.training.devices import Group
from bench.training.train import Objective, Trainer
from methods import base
from methods.base import Batch, Method, Net, Nets, kl
from methods.inner import ce, pgd

DATA = loading.load_data("digits", "unused", limit_train=160, limit_test=40, limit_val=40)


class Plain(Net):
    """Without BatchNorm, whose statistics are those of a part of the batch unless they are synchronised."""

    def __init__(self) -> None:
        super().__init__((0.0,), (1.0,))
        self.width, self.num_classes = 16, 10
        self.hidden, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = torch.tanh(self.hidden(x.flatten(1)))
        return found

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


class Cumulative(Normed):
    """Whose running statistics are means over all batches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(4, momentum=None)


@dataclasses.dataclass(frozen=True)
class Steady(Method):
    """KL(T(x) || S(x~)) + CE(S(x), y) from an attack without random numbers; a buffer that each step moves."""

    def build(self, student: Net, teachers: dict[str, Net], num_train: int) -> dict[str, nn.Module]:
        return {"seen": nn.BatchNorm1d(1, affine=False)}

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget, start="none")

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        nets.parts["seen"](batch.x.flatten()[:, None])
        return {
            "kl": kl(nets.clean(batch), nets.student(adv)).mean(),
            "ce": nn.functional.cross_entropy(nets.student(batch.x), batch.y),
        }


def trained(work: Path, group: Group, student: type[Net]) -> dict[str, Tensor]:
    """What two epochs of five batches of 32 leave."""
    torch.manual_seed(0)
    return fitted(
        Objective(Steady(), student(), {"robust": Plain()}, len(DATA.train)),
        DATA,
        work,
        group,
        epochs=2,
    )


def fitted(
    objective: Objective, found: Data, work: Path, group: Group, epochs: int
) -> dict[str, Tensor]:
    """State and last row of losses after training in batches of 32."""
    work.mkdir(exist_ok=True)
    training = Training(epochs=epochs, batch=32, lr=0.1, averaging=("ema",))
    spec = Spec(suite="digits", role="student", dataset="digits", arch="plain", method="any", hyper={}, teachers={},
                seed=0, training=training, eps=0.15, inner_step=0.06, inner_steps=2, attacks=(), full_checkpoints=(),
                precision="fp32")  # fmt: skip
    run = Trainer(objective, found, spec, work, group)
    rows: list[dict[str, float]] = []
    run.fit(lambda row, _: rows.append(row), lambda *_: None)
    last = {key: torch.tensor(value) for key, value in (rows[-1] if rows else {}).items()}
    return {**objective.state_dict(), **last}


def meet(rank: int, work: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{work}/meet", rank=rank, world_size=2
    )


def one_of_two(rank: int, work: Path, student: type[Net], sync_batchnorm: bool) -> None:
    meet(rank, work)
    torch.save(trained(work / "two", Group(rank, 2, sync_batchnorm), student), work / f"{rank}.pt")
    devices.leave()


@pytest.mark.parametrize(
    ("student", "sync_batchnorm"),
    [(Plain, False), (Normed, True), (Cumulative, True), (Normed, False)],
)
def test_two_processes_make_the_update_of_one(
    student: type[Net], sync_batchnorm: bool, tmp_path: Path
) -> None:
    """Weights, buffers and the losses that are logged; both processes end with the same.

    With BatchNorm only if it is synchronised.
    """
    expected = trained(tmp_path / "one", devices.ALONE, student)
    torch.multiprocessing.spawn(one_of_two, (tmp_path, student, sync_batchnorm), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for key in second:
        assert torch.equal(first[key], second[key]), key
    compared = [
        key for key in expected if "seen" not in key or "mean" in key
    ]  # its variance is that of half a batch
    if student is Normed and not sync_batchnorm:
        assert max((first[key] - expected[key]).abs().max() for key in compared) > 0.01
        return
    for key in compared:
        torch.testing.assert_close(first[key], expected[key], rtol=1e-4, atol=1e-6, msg=key)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }


def every_method(rank: int, work: Path) -> None:
    """Saves, for each method, what one synchronised step leaves of the student."""
    meet(rank, work)
    few = loading.load_data("digits", "unused", limit_train=32, limit_test=10, limit_val=10)
    found = {}
    for name in methods.names():
        method = methods.load(name)
        for official in (False, True):
            made = method(**base.official(method) if official else {})
            torch.manual_seed(0)
            teachers = {role: models.build("resnet8-w4", few.info) for role in made.requires}
            objective = Objective(
                made, models.build("resnet8-w4", few.info), teachers, len(few.train)
            )
            fitted(
                objective,
                few,
                work / f"{name}-{official}",
                Group(rank, 2, sync_batchnorm=True),
                epochs=1,
            )
            found[f"{name} {official}"] = torch.cat(
                [value.flatten() for value in objective.student.state_dict().values()]
            )
    torch.save(found, work / f"{rank}.pt")
    devices.leave()


@pytest.mark.slow
def test_every_method_takes_the_same_passes_in_both_processes(tmp_path: Path) -> None:
    """Otherwise they would wait for each other for ever; BatchNorm's running statistics tell of passes, too."""
    torch.multiprocessing.spawn(every_method, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) == 2 * len(methods.names())
    for name, state in first.items():
        assert torch.equal(state, second[name]), name


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a batch of 32 cannot be shared by 3 devices"):
        trained(tmp_path, Group(0, 3), Plain)


@pytest.mark.parametrize("group", [Group(0, 2), Group(0, 2, sync_batchnorm=True)])
def test_a_run_goes_on_with_as_many_devices(group: Group, tmp_path: Path) -> None:
    """Whoever resumes: one mixed record would tell of the last devices alone."""
    trained(tmp_path, devices.ALONE, Plain)
    with pytest.raises(
        BenchError, match=f"begun on 1 device, not on {group.words}: go on as it began"
    ):
        trained(tmp_path, group, Plain)
    with pytest.raises(
        BenchError, match=r"begun on 2 devices.*, not on 1 device: go on as it began"
    ):
        devices.ALONE.go_on(group.words)
    group.go_on(group.words)


def torchrun(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "bench",
    ]
    return subprocess.run([*command, *words.split()], cwd=folder, capture_output=True, text=True)


@pytest.mark.e2e
def test_the_whole_program_on_two_processes(tmp_path: Path) -> None:
    """A teacher and its student, recorded once; the same command again has nothing to do."""
    words = (
        "run --suite digits --method rslad --student resnet8-w4 --epochs 1 --seeds 0 --limit-train 200 --limit-test 40"
        " --sync-batchnorm"
    )
    done = torchrun(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 to do, 0 already recorded" in done.stderr
    assert done.stderr.count("[2/2]") >= 1
    again = torchrun(words, tmp_path)
    assert again.returncode == 0, again.stderr
    assert "0 to do, 2 already recorded" in again.stderr
    told = subprocess.run(
        [sys.executable, "-m", "bench", "export", "--suite", "digits", "--out", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    assert len(records) == 2
    (student,) = [record for record in records if record["spec"]["role"] == "student"]
    assert student["tags"]["command"].startswith(
        "torchrun --nproc-per-node 2 -m bench run --method rslad "
    )
    assert student["tags"]["command"].endswith(" --sync-batchnorm")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    places = [place.experiment_id for place in client.search_experiments()]
    found = {
        run.data.tags.get("training_path")
        for run in client.search_runs(places, "tags.role != 'group'")
    }
    kept = ", memory kept" * acceleration.keep_memory()
    assert found == {
        f"2 devices, BatchNorm synchronised{laid}{kept}" for laid in (", channels-last", "")
    }


@pytest.mark.e2e
def test_what_several_devices_refuse(tmp_path: Path) -> None:
    done = torchrun(
        "run --suite digits --method natural --student resnet8-w4 --workers 2", tmp_path
    )
    assert done.returncode != 0
    assert "--workers under torchrun" in done.stderr
