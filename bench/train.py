"""The one training loop: every method, teachers included.

It is a function of the spec alone: random numbers are seeded anew for each epoch from (seed, epoch), so a run that is
killed and resumed at an epoch's end continues exactly as it would have.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench import data as data_module
from bench.awp import perturbed
from bench.data import Data, Split
from bench.errors import BenchError, UsageError
from bench.models.checkpoint import read, save
from bench.spec import Spec
from bench.suites import Training
from methods.base import Batch, Budget, Method, Net, Nets
from methods.fold import fold
from methods.inner import ce, mode, pgd

Log = Callable[[dict[str, float], int], None]
Tick = Callable[[str, int, int], None]


class Objective(nn.Module):
    """Student and parts, which are trained and saved, with the frozen teachers beside them; forward gives the terms."""

    def __init__(self, method: Method, student: Net, teachers: dict[str, Net], num_train: int) -> None:
        super().__init__()
        self.method = method
        self.student = student
        self.parts = nn.ModuleDict(method.build(student, teachers, num_train))
        for teacher in teachers.values():
            fold(teacher.eval().requires_grad_(False))
        self.nets = Nets(student, teachers, self.parts)

    def attack(self, batch: Batch) -> Tensor:
        """The method's adversarial images for a batch."""
        return self.method.attack(self.nets, batch)

    def forward(self, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        return self.method.loss(self.nets, batch, adv)


@dataclass
class State:
    """Everything that a resumed run needs, as plain containers and tensors."""

    epoch: int = 0  # epochs done
    best: float = -1.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def learning_rate(training: Training, step: int, steps: int) -> float:
    """The rate of step `step` of `steps` in all: milestones at fractions of the run, or one linear rise and fall."""
    at = step / steps
    if training.schedule == "multistep":
        return training.lr * math.prod(0.1 for milestone in training.milestones if at >= milestone)
    rise = 0.3
    return training.lr * min((at + 1 / steps) / rise, (1 - at) / (1 - rise), 1.0)


def derive(*parts: object) -> int:
    """A 63-bit seed from any values."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class Trainer:
    """Trains one objective as its spec says, in a folder of its own from which it resumes."""

    def __init__(self, objective: Objective, data: Data, spec: Spec, work: Path) -> None:
        self.objective, self.data, self.spec, self.work = objective, data, spec, work
        training = spec.training
        if training.batch > len(data.train.x):
            raise UsageError(f"a batch of {training.batch} is larger than the {len(data.train.x)} training images")
        self.device = next(objective.parameters()).device
        self.budget = Budget(spec.eps, spec.inner_step, spec.inner_steps)
        self.steps = len(data.train.x) // training.batch
        self.optimiser = torch.optim.SGD(
            objective.method.groups(objective.nets),
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
        self.averages = {kind: average(objective.student, kind, training) for kind in training.averaging}
        self.state = State()

    def fit(self, log: Log, tick: Tick) -> State:
        """Runs the epochs that are left; writes best.pt, last.pt, ema.pt and swa.pt into the work folder."""
        self._resume()
        for row in self.state.history:
            log(row, int(row["epoch"]))
        for epoch in range(self.state.epoch, self.spec.training.epochs):
            start = time.perf_counter()
            row = {"epoch": epoch, **self._epoch(epoch, tick)}
            if (epoch + 1) % self.spec.training.validate_every == 0 or epoch + 1 == self.spec.training.epochs:
                row |= self._validate(epoch)
            self.state.seconds += time.perf_counter() - start
            self._keep(epoch, row)
            log(row, epoch)
        return self.state

    def _epoch(self, epoch: int, tick: Tick) -> dict[str, float]:
        """One pass over the training images; returns the mean of every loss term."""
        self.objective.train()
        torch.manual_seed(derive(self.spec.seed, epoch))
        sums: dict[str, Tensor] = {}
        for step, batch in enumerate(self.batches(epoch)):
            for name, term in self.step(batch, epoch * self.steps + step).items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
            tick("train", epoch * self.steps + step + 1, self.spec.training.epochs * self.steps)
        if "swa" in self.averages and epoch >= int(self.spec.training.swa_start * self.spec.training.epochs):
            self.averages["swa"].update_parameters(self.objective.student)
        means = {f"train/{name}": (total / self.steps).item() for name, total in sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise BenchError(f"{name} became {value} in epoch {epoch}; a lower learning rate may help")
        return means

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's batches: shuffled, augmented image by image on the device, the incomplete last one left out."""
        train, size = self.data.train, self.spec.training.batch
        order = torch.randperm(len(train.x), device=self.device)
        for step in range(self.steps):
            index = order[step * size : (step + 1) * size]
            x = data_module.augment(data_module.to_float(train.x[index]), self.data.info.pad, self.data.info.flip)
            epochs = self.spec.training.epochs
            yield Batch(x, train.y[index], index, epoch, epochs, len(train.x), self.budget)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One update; returns the detached terms."""
        rate = learning_rate(self.spec.training, step, self.spec.training.epochs * self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        with self.autocast():
            adv = self.objective.attack(batch)
        self.optimiser.zero_grad(set_to_none=True)
        student, gamma = self.objective.student, self.spec.training.awp
        with perturbed(student, self.objective, lambda: self.terms(batch, adv)[1], gamma):
            terms, total = self.terms(batch, adv)
            total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.objective.method.after_step(self.objective.nets, batch)
        if "ema" in self.averages:
            self.averages["ema"].update_parameters(student)
        return {name: term.detach() for name, term in terms.items()}

    def terms(self, batch: Batch, adv: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The loss's terms and their sum."""
        with self.autocast():
            terms = self.objective(batch, adv)
        return terms, torch.stack([term.float() for term in terms.values()]).sum()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16")

    def _validate(self, epoch: int) -> dict[str, float]:
        """Clean accuracy and accuracy under PGD with the training budget, on the validation images."""
        torch.manual_seed(derive("validation", self.spec.seed, epoch))
        clean, robust = accuracy(self.objective.student, self.data.val, self.budget)
        return {"val/clean": clean, "val/robust": robust}

    def _keep(self, epoch: int, row: dict[str, float]) -> None:
        """Writes the checkpoints, best first: whichever instant the process dies at, a resumed run ends the same."""
        state = self.state
        state.epoch = epoch + 1
        state.history.append(row)
        score = row.get("val/robust" if self.objective.method.adversarial else "val/clean", -1.0)
        if score > state.best:
            state.best = score
            self._write("best", self.objective.student)
        if state.epoch == self.spec.training.epochs:
            self._write("last", self.objective.student)
            for kind, averaged in self.averages.items():
                self._write(kind, averaged.module)
        save(self.work / "state.pt", self._snapshot())

    def _write(self, name: str, net: nn.Module) -> None:
        spec = self.spec
        meta = {"arch": spec.arch, "dataset": spec.dataset, "method": spec.method, "spec_id": spec.id}
        save(self.work / f"{name}.pt", {"state_dict": net.state_dict(), **meta})

    def _snapshot(self) -> dict[str, Any]:
        return {
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "averages": {kind: averaged.state_dict() for kind, averaged in self.averages.items()},
            "state": vars(self.state),
        }

    def _resume(self) -> None:
        path = self.work / "state.pt"
        if not path.exists():
            return
        try:
            saved = read(path)
        except BenchError as error:
            raise BenchError(f"{error}; --force begins this run again") from error
        self.objective.load_state_dict(saved["objective"])
        self.optimiser.load_state_dict(saved["optimiser"])
        for kind, averaged in self.averages.items():
            averaged.load_state_dict(saved["averages"][kind])
        self.state = State(**saved["state"])


def average(student: Net, kind: str, training: Training) -> AveragedModel:
    """The running average of the student, BatchNorm statistics included: "ema" moves at each step, "swa" each epoch."""
    ema = get_ema_multi_avg_fn(training.ema_decay) if kind == "ema" else None  # type: ignore[no-untyped-call]
    return AveragedModel(student, multi_avg_fn=ema, use_buffers=True)


def accuracy(net: Net, split: Split, budget: Budget, batch: int = 250) -> tuple[float, float]:
    """Clean accuracy and accuracy under cross-entropy PGD of `net` on a split, both in [0, 1]."""
    clean = robust = 0
    with mode(net, training=False):
        for x, y in zip(torch.split(split.x, batch), torch.split(split.y, batch), strict=True):
            images = data_module.to_float(x)
            adv = pgd(net, images, ce(y), budget)
            with torch.no_grad():
                clean += int((net(images).argmax(dim=1) == y).sum())
                robust += int((net(adv).argmax(dim=1) == y).sum())
    return clean / len(split.x), robust / len(split.x)
