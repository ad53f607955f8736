"""One run on several devices: `torchrun --nproc-per-node N -m bench run ...`.

Each process has a part of every batch and its own random numbers; gradients are averaged once a step, BatchNorm's
running statistics and what else a method keeps in buffers once an epoch. The process of rank 0 is the program; the
others train what it trains. torch's DistributedDataParallel takes one forward and one backward pass a step; a method
may take more, and adversarial weight perturbation does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.system.errors import BenchError, UsageError

NUMBERS, MASTER = (
    ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
    ("MASTER_ADDR", "MASTER_PORT"),
)  # variables of torchrun
PATIENCE = timedelta(days=7)  # the others wait while rank 0 evaluates


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together; one alone unless torchrun started several."""

    rank: int = 0
    size: int = 1
    sync_batchnorm: bool = False  # BatchNorm sees the whole batch, not this process's part

    @property
    def leads(self) -> bool:
        """Whether this process validates, writes and speaks."""
        return self.rank == 0

    @property
    def words(self) -> str:
        """All of it that can alter what a run becomes."""
        return f"{self.size} device{'s' * (self.size > 1)}{' with --sync-batchnorm' * self.sync_batchnorm}"

    def command(self, alone: str) -> str:
        """What starts on these devices the run that `alone`, "python -m bench ...", starts on one."""
        if self.size == 1:
            return alone
        several = alone.replace("python", f"torchrun --nproc-per-node {self.size}", 1)
        return f"{several} --sync-batchnorm" if self.sync_batchnorm else several

    def go_on(self, begun: str) -> None:
        """Raises BenchError where a run that was `begun` on other devices, in `words`, would become a mixture."""
        if begun != self.words:
            raise BenchError(
                f"begun on {begun}, not on {self.words}: go on as it began, or --force begins it again"
            )

    def part(self, index: Tensor) -> Tensor:
        """This process's share of a batch: (B,) -> (B / size,)."""
        return index.chunk(self.size)[self.rank]

    @torch.no_grad()
    def average(self, values: Sequence[Tensor]) -> None:
        """Replaces tensors by their means over the processes, in one exchange."""
        if self.size == 1 or not values:
            return
        flat = torch.cat([value.flatten() for value in values])
        dist.all_reduce(flat)
        means = (flat / self.size).split([value.numel() for value in values])  # type: ignore[no-untyped-call]
        for value, mean in zip(values, means, strict=True):
            value.copy_(mean.view_as(value))

    def tell(self, what: Any) -> None:
        """Says to the others, from rank 0, what to do next; None: nothing more."""
        if self.size > 1:
            dist.broadcast_object_list([what], src=0, device=torch.device("cpu"))

    def hear(self) -> Any:
        """What rank 0 told."""
        said = [None]
        dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
        return said[0]


SINGLE_PROCESS = ProcessGroup()


def join(device: torch.device, sync_batchnorm: bool) -> tuple[ProcessGroup, torch.device]:
    """The group that torchrun's environment describes, joined, and this process's device of the kind given.

    Raises UsageError for an environment that describes none in full, and for more processes than devices.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    if size == "1":
        return SINGLE_PROCESS, device
    lacking = [name for name in NUMBERS if not os.environ.get(name, "").isdigit()]
    lacking += [name for name in MASTER if not os.environ.get(name)]
    if lacking:
        wrong = f"torchrun's {', '.join(lacking)} are missing or no numbers"
        raise UsageError(f"WORLD_SIZE={size}, but {wrong}: unset it to train on one device")
    if device.type == "cuda":
        place = int(os.environ["LOCAL_RANK"])
        if place >= torch.cuda.device_count():
            raise UsageError(
                f"torchrun asks for more processes than there are CUDA devices, {torch.cuda.device_count()}"
            )
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE
    )
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), sync_batchnorm), device


def leave() -> None:
    """Ends the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
