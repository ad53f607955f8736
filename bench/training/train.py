"""The one training loop: every method, teachers included.

It is a function of the spec and the teachers: random numbers are seeded anew for each epoch from (seed, epoch), so a run
that is killed and resumed at an epoch's end continues exactly as it would have.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.datasets import augmentation
from bench.datasets.splits import Data, Split
from bench.models.checkpoint import read, save
from bench.protocol.spec import Spec
from bench.system.errors import BenchError, UsageError
from bench.training import acceleration
from bench.training.average import Average
from bench.training.awp import perturbed
from bench.training.batchnorm import synchronise
from bench.training.devices import ALONE, Group
from methods.base import Batch, Budget, Method, Net, Nets
from methods.fold import fold
from methods.inner import ce, mode, pgd

Log = Callable[[dict[str, float], int], None]
Tick = Callable[[str, int, int], None]
STATE = "state.pt"  # file of a run that is not done


class Objective(nn.Module):
    """Student and parts, which are trained and saved, with the frozen teachers beside them; forward gives the terms."""

    def __init__(
        self, method: Method, student: Net, teachers: dict[str, Net], num_train: int
    ) -> None:
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


def derive(*parts: object) -> int:
    """A 63-bit seed from any values."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class Trainer:
    """Trains one objective as its spec says, in a folder of its own from which it resumes."""

    def __init__(
        self, objective: Objective, data: Data, spec: Spec, work: Path, group: Group = ALONE
    ) -> None:
        self.objective, self.data, self.spec, self.work, self.group = (
            objective,
            data,
            spec,
            work,
            group,
        )
        training = spec.training
        if training.batch > len(data.train.x):
            raise UsageError(
                f"a batch of {training.batch} is larger than the {len(data.train.x)} training images"
            )
        if training.batch % group.size:
            raise UsageError(
                f"a batch of {training.batch} cannot be shared by {group.size} devices"
            )
        self.device = next(objective.parameters()).device
        self.budget = Budget(spec.eps, spec.inner_step, spec.inner_steps)
        self.steps = len(data.train.x) // training.batch
        self.graphs: acceleration.Graphs | None = None
        self.path = [f"{group.size} devices"] * (
            group.size > 1
        )  # what was done to make steps fast, for the record
        if group.size > 1 and group.sync_batchnorm:
            self.path.append(synchronise(objective))
        if self.device.type == "cuda":
            self.graphs = acceleration.Graphs(self.device)
        self.path += acceleration.prepare(objective.nets, self.device)
        self.bf16 = spec.precision == "bf16" and acceleration.has_bf16(self.device)
        if spec.precision == "bf16":
            self.path.append("bf16" if self.bf16 else acceleration.NO_BF16)
        self.optimiser = torch.optim.SGD(
            objective.method.groups(objective.nets),
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=self.graphs is not None,
        )
        self.rates = [torch.zeros((), device=self.device) for _ in self.optimiser.param_groups]
        decay = {
            "ema": training.ema_decay,
            "swa": None,
        }  # the first moves at each step, the second each epoch
        self.averages = {
            kind: Average(objective.student, decay[kind]) for kind in training.averaging
        }
        self.state = State()

    def fit(self, log: Log, tick: Tick) -> State:
        """Runs the epochs that are left; writes best.pt, last.pt, ema.pt and swa.pt into the work folder."""
        self._resume()
        for row in self.state.history:
            log(row, int(row["epoch"]))
        todo = range(self.state.epoch, self.spec.training.epochs)
        compiled = self._compile(todo)
        with self.graphs.kept() if self.graphs else nullcontext():
            for epoch in todo:
                start = time.perf_counter()
                with acceleration.tuned_convolutions():
                    row = {"epoch": epoch, **self._epoch(epoch, tick)}
                if not self.group.leads:
                    continue
                if (
                    (epoch + 1) % self.spec.training.validate_every == 0
                    or epoch + 1 == self.spec.training.epochs
                ):
                    with acceleration.uncompiled() if compiled else nullcontext():
                        row |= self._validate(epoch)
                self.state.seconds += time.perf_counter() - start
                self._keep(epoch, row)
                log(row, epoch)
        return self.state

    def _compile(self, todo: range) -> bool:
        """Compiles the networks on a CUDA device if so much is left that it pays; returns whether it did."""
        pays = len(todo) * len(self.data.train.x) >= acceleration.PAYS
        if (
            not self.graphs or not pays or self.group.sync_batchnorm
        ):  # a compiler cannot see across processes
            return False

        def rehearsal() -> Tensor:
            batch = self.batch(self.order()[0], todo[0])
            return self.terms(batch, self.attack(batch))[1]

        self.objective.train()
        with self.graphs.here():
            self.path.append(acceleration.compile_networks(self.objective.nets, rehearsal))
        return acceleration.COMPILED in self.path

    def _epoch(self, epoch: int, tick: Tick) -> dict[str, float]:
        """One pass over the training images; returns the mean of every loss term."""
        self.objective.train()
        torch.manual_seed(derive(self.spec.seed, epoch))
        sums: dict[str, Tensor] = {}
        advance = self.advance(epoch)
        order = self.order()
        if self.group.size > 1:
            torch.manual_seed(derive(self.spec.seed, epoch, self.group.rank))
        for step, index in enumerate(order):
            self.set_rate(epoch * self.steps + step)
            for name, term in advance(index).items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
            tick("train", epoch * self.steps + step + 1, self.spec.training.epochs * self.steps)
        if (
            isinstance(advance, acceleration.Replayed)
            and advance.graph
            and acceleration.CAPTURED not in self.path
        ):
            self.path.append(acceleration.CAPTURED)
        self.group.average(
            [value for value in self.objective.buffers() if value.is_floating_point()]
        )
        self.group.average([*sums.values()])
        if "swa" in self.averages and epoch >= int(
            self.spec.training.swa_start * self.spec.training.epochs
        ):
            self.averages["swa"].update(self.objective.student)
        means = {f"train/{name}": (total / self.steps).item() for name, total in sums.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise BenchError(
                    f"{name} became {value} in epoch {epoch}; a lower learning rate may help"
                )
        return means

    def advance(self, epoch: int) -> acceleration.Work:
        """The function that makes one update from the positions of a batch's images, in this epoch."""

        def work(index: Tensor) -> dict[str, Tensor]:
            return self.step(self.batch(index, epoch))

        return self.graphs.replayed(work) if self.graphs and self.group.size == 1 else work

    def order(self) -> Sequence[Tensor]:
        """An epoch's batches, or this device's share of them, as positions in the training set.

        Shuffled, the incomplete last one left out.
        """
        shuffled = torch.randperm(len(self.data.train.x), device=self.device)
        return [
            self.group.part(index)
            for index in torch.split(shuffled, self.spec.training.batch)[: self.steps]
        ]

    def batch(self, index: Tensor, epoch: int) -> Batch:
        """The images at these positions, augmented image by image on the device."""
        train = self.data.train
        x = augmentation.augment(
            augmentation.to_float(train.x[index]), self.data.info.pad, self.data.info.flip
        )
        epochs, read = self.spec.training.epochs, self.graphs.read if self.graphs else set()
        return acceleration.Observed(
            x, train.y[index], index, epoch, epochs, len(train), self.budget, read
        )

    def set_rate(self, step: int) -> None:
        """The learning rates of one of the run's steps; on a CUDA device in memory that a captured step reads."""
        rate = self.spec.training.rate(step, self.spec.training.epochs * self.steps)
        for group, held in zip(self.optimiser.param_groups, self.rates, strict=True):
            value = rate * group.get("scale", 1.0)
            group["lr"] = held.fill_(value) if self.graphs else value

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update at the rates that are set; returns the detached terms."""
        adv = self.attack(batch)
        self.optimiser.zero_grad(set_to_none=True)
        student, gamma = self.objective.student, self.spec.training.awp
        with perturbed(student, self.objective, lambda: self.terms(batch, adv)[1], gamma):
            terms, total = self.terms(batch, adv)
            total.backward()  # type: ignore[no-untyped-call]
        self.group.average(
            [value.grad for value in self.objective.parameters() if value.grad is not None]
        )
        self.optimiser.step()
        self.objective.method.after_step(self.objective.nets, batch)
        if "ema" in self.averages:
            self.averages["ema"].update(student)
        return {name: term.detach() for name, term in terms.items()}

    def attack(self, batch: Batch) -> Tensor:
        """The images that the method's attack finds."""
        with self.autocast():
            return self.objective.attack(batch)

    def terms(self, batch: Batch, adv: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The loss's terms and their sum."""
        with self.autocast():
            terms = self.objective(batch, adv)
        return terms, torch.stack([term.float() for term in terms.values()]).sum()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

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
        save(self.work / STATE, self._snapshot())

    def _write(self, name: str, net: nn.Module) -> None:
        spec = self.spec
        meta = {
            "arch": spec.arch,
            "dataset": spec.dataset,
            "method": spec.method,
            "spec_id": spec.id,
        }
        save(self.work / f"{name}.pt", {"state_dict": net.state_dict(), **meta})

    def _snapshot(self) -> dict[str, Any]:
        return {
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "averages": {kind: averaged.state_dict() for kind, averaged in self.averages.items()},
            "state": vars(self.state),
            "begun": self.group.words,
        }

    def _resume(self) -> None:
        if not (path := self.work / STATE).exists():
            return
        try:
            saved = read(path)
        except BenchError as error:
            raise BenchError(f"{error}; --force begins this run again") from error
        self.group.go_on(saved.get("begun", self.group.words))  # earlier versions did not note it
        self.objective.load_state_dict(saved["objective"])
        self.optimiser.load_state_dict(saved["optimiser"])
        for group in self.optimiser.param_groups:
            group["fused"] = self.graphs is not None  # whatever kind of device it was saved on
        for kind, averaged in self.averages.items():
            averaged.load_state_dict(saved["averages"][kind])
        self.state = State(**saved["state"])


def accuracy(net: Net, split: Split, budget: Budget, batch: int = 250) -> tuple[float, float]:
    """Clean accuracy and accuracy under cross-entropy PGD of `net` on a split, both in [0, 1]."""
    clean = robust = 0
    with mode(net, training=False):
        for x, y in zip(torch.split(split.x, batch), torch.split(split.y, batch), strict=True):
            images = augmentation.to_float(x)
            adv = pgd(net, images, ce(y), budget)
            with torch.no_grad():
                clean += int((net(images).argmax(dim=1) == y).sum())
                robust += int((net(adv).argmax(dim=1) == y).sum())
    return clean / len(split.x), robust / len(split.x)
