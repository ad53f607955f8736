"""The training loop of every method, teachers included.

A run is a function of its spec and its teachers. Random numbers are seeded from (seed, epoch) as
each epoch begins, so a run that is killed resumes at the last epoch's end and continues exactly as
it would have.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.datasets.augmentation import augment, to_float
from bench.datasets.splits import Data, Split
from bench.models.checkpoint import read, save
from bench.system.errors import BenchError, UsageError, one_line
from bench.system.log import LOGGER
from bench.training.averaging import AveragedNetwork
from bench.training.awp import perturbed_weights
from bench.training.compiling import (
    COMPILED,
    MIN_IMAGES_TO_COMPILE,
    compile_networks,
    cudnn_benchmark,
    decompile_networks,
    uncompiled,
)
from bench.training.cuda_graphs import CAPTURED, CapturedStep, Step, StepGraphs
from bench.training.distributed import SINGLE_PROCESS, ProcessGroup, synchronise_batchnorm
from bench.training.memory_layout import arrange_memory, has_bf16
from bench.training.schedule import learning_rate
from leaderboards.schema.fields import NO_BF16
from leaderboards.schema.metrics import MONITOR, TRAIN, VAL_CLEAN, VAL_ROBUST
from leaderboards.schema.spec import Spec
from methods.base import Batch, Budget, Method, Net, Nets, own_rows
from methods.fold import fold
from methods.inner import ce, mode, pgd
from methods.outside import contained

Log = Callable[[dict[str, float], int], None]
Tick = Callable[[str, int, int], None]
# The file that a run keeps until it is done.
STATE = "state.pt"


class TrainingModule(nn.Module):
    """The student, the trainable parts of its method, and the frozen teachers beside them."""

    def __init__(
        self, method: Method, student: Net, teachers: dict[str, Net], num_train: int
    ) -> None:
        super().__init__()
        self.method = method
        self.student = student
        with contained():
            self.parts = nn.ModuleDict(method.build(student, teachers, num_train))
        for teacher in teachers.values():
            fold(teacher.eval().requires_grad_(False))
        # Not modules of this one: teachers are neither trained nor saved with the student.
        self.nets = Nets(student, teachers, self.parts)

    def attack(self, batch: Batch) -> Tensor:
        """Return the method's adversarial examples for a batch."""
        return self.method.attack(self.nets, batch)

    def forward(self, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the method's loss at the adversarial examples."""
        return self.method.loss(self.nets, batch, adv)


@dataclass
class State:
    """Counters and history of a run, saved beside its networks."""

    # Epochs done.
    epoch: int = 0
    # Highest validation accuracy; -1 before the first validation.
    best: float = -1.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed made of any values."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def check_batch_size(batch: int, num_train: int) -> None:
    """Raise UsageError for a batch that training could not fill."""
    if batch > num_train:
        images = f"the {num_train} training images"
        raise UsageError(f"a batch of {batch} is larger than {images}: raise --limit-train")


def count_steps(num_train: int, batch: int, drop_last: bool) -> int:
    """Return the number of batches of an epoch."""
    return num_train // batch if drop_last else math.ceil(num_train / batch)


class Trainer:
    """Train a module as its spec says, in a folder of its own from which it resumes."""

    def __init__(
        self,
        module: TrainingModule,
        data: Data,
        spec: Spec,
        folder: Path,
        process_group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.module = module
        self.data = data
        self.spec = spec
        self.folder = folder
        self.process_group = process_group
        batch, size = spec.training.batch, process_group.size
        check_batch_size(batch, len(data.train))
        if batch % size:
            raise UsageError(f"a batch of {batch} cannot be shared by {size} devices")
        self.device = next(module.parameters()).device
        self.budget = Budget(
            spec.eps, spec.inner_step, spec.inner_steps, spec.norm, spec.training.clamp_start
        )
        self.steps_per_epoch = count_steps(len(data.train), batch, spec.training.drop_last)
        self.graphs = StepGraphs(self.device) if self.device.type == "cuda" else None
        self.bf16 = spec.precision == "bf16" and has_bf16(self.device)
        self.compiled = False
        # How steps are made fast on this device, for the record.
        self.training_path = self._prepare_networks()
        self.optimiser = self._make_optimiser()
        # Captured steps read their rates from here.
        self.device_rates = [
            torch.zeros((), device=self.device) for _ in self.optimiser.param_groups
        ]
        # EMA moves at each step, SWA once an epoch with all epochs alike.
        decays = {"ema": spec.training.ema_decay, "swa": None}
        self.averages = {
            kind: AveragedNetwork(module.student, decays[kind]) for kind in spec.training.averaging
        }
        self.state = State()

    def _prepare_networks(self) -> list[str]:
        path = []
        if self.process_group.size > 1:
            path.append(f"{self.process_group.size} devices")
            if self.process_group.sync_batchnorm:
                path.append(synchronise_batchnorm(self.module))
        path += arrange_memory(self.module.nets, self.device)
        if self.spec.precision == "bf16":
            path.append("bf16" if self.bf16 else NO_BF16)
        return path

    def _make_optimiser(self) -> torch.optim.SGD:
        training = self.spec.training
        return torch.optim.SGD(
            self.module.method.param_groups(self.module.nets),
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.nesterov,
            fused=self.graphs is not None,
        )

    def fit(self, log: Log, tick: Tick) -> State:
        """Train the epochs that are left and write best.pt, last.pt, ema.pt and swa.pt.

        Args:
            log: receives the metrics of each epoch, those of earlier processes too.
            tick: receives ("train", steps done, steps in all) after each step.
        """
        self._resume()
        for row in self.state.history:
            log(row, int(row["epoch"]))
        epochs = range(self.state.epoch, self.spec.training.epochs)
        if self._pays_to_compile(epochs):
            self._compile(epochs[0])
        with contained(), self.graphs.freed_on_exit() if self.graphs else nullcontext():
            for epoch in epochs:
                row = self._train_and_validate(epoch, tick)
                if self.process_group.is_leader:
                    log(row, epoch)
        return self.state

    def _train_and_validate(self, epoch: int, tick: Tick) -> dict[str, float]:
        """Train one epoch, then validate and write checkpoints on the leader; return metrics."""
        start = time.perf_counter()
        with cudnn_benchmark():
            row = {"epoch": epoch, **self._train_epoch_or_decompile(epoch, tick)}
        if not self.process_group.is_leader:
            return row
        training = self.spec.training
        if (epoch + 1) % training.validate_every == 0 or epoch + 1 == training.epochs:
            # Validation images come in batches of other sizes, each of which would be compiled.
            with uncompiled() if self.compiled else nullcontext():
                row |= self._validate(epoch)
        self.state.seconds += time.perf_counter() - start
        self._save_epoch(epoch, row)
        return row

    def _pays_to_compile(self, epochs: range) -> bool:
        """Return whether networks can be compiled and enough training is left."""
        # SyncBatchNorm's exchange cannot be compiled.
        can_compile = self.graphs is not None and not self.process_group.sync_batchnorm
        return can_compile and len(epochs) * len(self.data.train) >= MIN_IMAGES_TO_COMPILE

    def _compile(self, epoch: int) -> None:
        """Compile the networks, unless a step of the epoch fails with them."""

        def sample_loss() -> Tensor:
            batch = self.make_batch(self.epoch_batches()[0], epoch)
            # Alone: the others would wait for ever for a process that cannot compile.
            batch = replace(batch, gather=own_rows)
            return self.loss_terms(batch, self.attack(batch))[1]

        self.module.train()
        with self.graphs.capture_stream() if self.graphs else nullcontext():
            self.training_path.append(compile_networks(self.module.nets, sample_loss))
        self.compiled = COMPILED in self.training_path
        if self.compiled and not (self.folder / STATE).exists():
            # Where to go back to, should the compiled code fail in the first epoch.
            save(self.folder / STATE, self._snapshot())

    def _train_epoch_or_decompile(self, epoch: int, tick: Tick) -> dict[str, float]:
        """Train an epoch. Where compiled code fails the epoch is begun again as written."""
        try:
            return self._train_epoch(epoch, tick)
        except (BenchError, torch.OutOfMemoryError):
            raise
        # A compiler fails in many ways, for a shape or a branch that comes late.
        except Exception as error:
            # Of several processes the others would not go back.
            if not self.compiled or self.process_group.size > 1:
                raise
            reason = one_line(error, 200)
            LOGGER.warning(f"compiled code failed in epoch {epoch}, it is not used now: {reason}")
            self._decompile(epoch, error)
        return self._train_epoch(epoch, tick)

    def _decompile(self, epoch: int, error: Exception) -> None:
        """Go back to the beginning of the epoch, with networks as written."""
        decompile_networks(self.module.nets)
        self.compiled = False
        name = f"not compiled since epoch {epoch} ({type(error).__name__})"
        self.training_path[self.training_path.index(COMPILED)] = name
        if self.graphs is not None:
            self.graphs.last_step = None
        self._resume()

    def _train_epoch(self, epoch: int, tick: Tick) -> dict[str, float]:
        """Pass once over the training images; return the means of what each step returns."""
        self.module.train()
        torch.manual_seed(derive_seed(self.spec.seed, epoch))
        sums: dict[str, Tensor] = {}
        run_step = self.step_function(epoch)
        batches = self.epoch_batches()
        if self.process_group.size > 1:
            # All processes shuffle alike, then each draws its own augmentation and attack.
            torch.manual_seed(derive_seed(self.spec.seed, epoch, self.process_group.rank))
        first_step = epoch * self.steps_per_epoch
        total_steps = self.spec.training.epochs * self.steps_per_epoch
        for step, index in enumerate(batches, first_step):
            self.set_learning_rates(step)
            for name, value in run_step(index).items():
                # Summed on the device: reading a value would wait for it at each step.
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
            tick("train", step + 1, total_steps)
        captured = isinstance(run_step, CapturedStep) and run_step.graph is not None
        if captured and CAPTURED not in self.training_path:
            self.training_path.append(CAPTURED)
        for module in (self.module, *self.averages.values()):
            buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
            self.process_group.average(buffers)
        self.process_group.average([*sums.values()])
        self._update_swa(epoch)
        return self._means(epoch, sums)

    def _update_swa(self, epoch: int) -> None:
        training = self.spec.training
        # A share of the epochs such as 29 / 100 may be a little less in floating point.
        start = int(training.swa_start * training.epochs + 1e-9)
        if "swa" in self.averages and epoch >= start:
            self.averages["swa"].update(self.module.student)

    def _means(self, epoch: int, sums: dict[str, Tensor]) -> dict[str, float]:
        """Return the means over the steps. Raise BenchError if one is not finite."""
        means = {}
        for name, total in sums.items():
            mean = (total / self.steps_per_epoch).item()
            if not math.isfinite(mean):
                raise BenchError(
                    f"{name} became {mean} in epoch {epoch}; a lower learning rate may help"
                )
            means[name] = mean
        return means

    def step_function(self, epoch: int) -> Step:
        """Return the function that makes one update from the positions of a batch's images."""

        def run_step(index: Tensor) -> dict[str, Tensor]:
            return self.update(self.make_batch(index, epoch))

        if self.graphs is None or self.process_group.size > 1:
            return run_step
        return self.graphs.step_of_epoch(run_step, self.module.method.epoch_dependent)

    def epoch_batches(self) -> Sequence[Tensor]:
        """Return an epoch's batches, or this device's parts of them.

        Each is (B,) positions in the training set, shuffled. The incomplete last batch is left
        out, unless the spec keeps it.
        """
        shuffled = torch.randperm(len(self.data.train), device=self.device)
        batches = torch.split(shuffled, self.spec.training.batch)[: self.steps_per_epoch]
        return [self.process_group.local_part(index) for index in batches]

    def make_batch(self, index: Tensor, epoch: int) -> Batch:
        """Return the images at these positions, each augmented for itself on the device."""
        train, info = self.data.train, self.data.info
        x = augment(to_float(train.x[index]), info.pad, info.flip)
        epochs, gather = self.spec.training.epochs, self.process_group.gather
        return Batch(x, train.y[index], index, epoch, epochs, len(train), self.budget, gather)

    def set_learning_rates(self, step: int) -> None:
        """Set the learning rates of one of the run's steps."""
        training = self.spec.training
        rate = learning_rate(training, step, training.epochs * self.steps_per_epoch)
        groups = zip(self.optimiser.param_groups, self.device_rates, strict=True)
        for group, device_rate in groups:
            value = rate * group.get("scale", 1.0)
            group["lr"] = device_rate.fill_(value) if self.graphs else value

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one update at the rates that are set; return what of it is logged, by metric.

        Those are the terms of the loss, detached, and what the method monitors.
        """
        module, student = self.module, self.module.student
        adv = self.attack(batch)
        self.optimiser.zero_grad(set_to_none=True)

        def total_loss() -> Tensor:
            return self.loss_terms(batch, adv)[1]

        with perturbed_weights(student, module, total_loss, self.spec.training.awp):
            terms, total = self.loss_terms(batch, adv)
            total.backward()  # type: ignore[no-untyped-call]
        gradients = [value.grad for value in module.parameters() if value.grad is not None]
        self.process_group.average(gradients)
        self.optimiser.step()
        module.method.after_step(module.nets, batch)
        if "ema" in self.averages:
            self.averages["ema"].update(student)
        logged = {f"{TRAIN}{name}": term.detach() for name, term in terms.items()}
        for name, value in module.method.monitor(module.nets).items():
            logged[f"{MONITOR}{name}"] = value.detach().clone()
        return logged

    def attack(self, batch: Batch) -> Tensor:
        """Return the adversarial examples of the method's attack."""
        with self.autocast():
            return self.module.attack(batch)

    def loss_terms(self, batch: Batch, adv: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the terms of the loss and their sum, in single precision."""
        with self.autocast():
            terms = self.module(batch, adv)
        return terms, torch.stack([term.float() for term in terms.values()]).sum()

    def autocast(self) -> torch.autocast:
        """Return the context of mixed precision, which does nothing in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _validate(self, epoch: int) -> dict[str, float]:
        """Return clean and robust accuracy on the validation images, with the inner budget."""
        torch.manual_seed(derive_seed("validation", self.spec.seed, epoch))
        clean, robust = clean_and_robust_accuracy(self.module.student, self.data.val, self.budget)
        return {VAL_CLEAN: clean, VAL_ROBUST: robust}

    def _save_epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Write the checkpoints of an epoch and the state of the run."""
        state = self.state
        state.epoch = epoch + 1
        state.history.append(row)
        metric = VAL_ROBUST if self.module.method.adversarial else VAL_CLEAN
        score = row.get(metric, -1.0)
        if score > state.best:
            state.best = score
            self._save_network("best", self.module.student)
        if state.epoch == self.spec.training.epochs:
            self._save_network("last", self.module.student)
            for kind, average in self.averages.items():
                self._save_network(kind, average.module)
        # Last: after a kill at any instant the run resumes from a complete epoch.
        save(self.folder / STATE, self._snapshot())

    def _save_network(self, name: str, net: nn.Module) -> None:
        spec = self.spec
        content = {
            "state_dict": net.state_dict(),
            "arch": spec.arch,
            "dataset": spec.dataset,
            "method": spec.method,
            "spec_id": spec.id,
        }
        save(self.folder / f"{name}.pt", content)

    def _snapshot(self) -> dict[str, Any]:
        averages = {kind: average.state_dict() for kind, average in self.averages.items()}
        # Keys of the state files of 0.1.0.
        return {
            "objective": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "averages": averages,
            "state": vars(self.state),
            "begun": self.process_group.description,
        }

    def _resume(self) -> None:
        """Load what an interrupted process left, if anything."""
        path = self.folder / STATE
        if not path.exists():
            return
        try:
            saved = read(path)
        except BenchError as error:
            raise BenchError(f"{error}; --force restarts the run") from error
        # Earlier versions did not note the devices.
        begun_on = saved.get("begun", self.process_group.description)
        self.process_group.check_same_group(begun_on)
        try:
            self._load_snapshot(saved)
        # What the parts of torch raise for a state of another structure has no common class.
        except Exception as error:
            fault = f"{type(error).__name__}: {one_line(error, 160)}"
            message = f"{str(path)!r} is the state of another network or method: {fault}"
            raise BenchError(f"{message}; --force restarts the run") from error

    def _load_snapshot(self, saved: dict[str, Any]) -> None:
        self.module.load_state_dict(saved["objective"])
        self.optimiser.load_state_dict(saved["optimiser"])
        for group in self.optimiser.param_groups:
            # The state may come from another kind of device.
            group["fused"] = self.graphs is not None
        for kind, average in self.averages.items():
            average.load_state_dict(saved["averages"][kind])
        self.state = State(**saved["state"])


def clean_and_robust_accuracy(
    net: Net, split: Split, budget: Budget, batch_size: int = 250
) -> tuple[float, float]:
    """Return clean accuracy and accuracy under cross-entropy PGD on a split, in [0, 1]."""
    clean = robust = 0
    batches = zip(torch.split(split.x, batch_size), torch.split(split.y, batch_size), strict=True)
    with mode(net, training=False):
        for pixels, y in batches:
            x = to_float(pixels)
            adv = pgd(net, x, ce(y), budget)
            with torch.no_grad():
                clean += int((net(x).argmax(dim=1) == y).sum())
                robust += int((net(adv).argmax(dim=1) == y).sum())
    return clean / len(split), robust / len(split)
