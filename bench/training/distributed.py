"""One run on several devices: `torchrun --nproc-per-node N -m bench run ...`.

Each process has a part of every batch and its own random numbers. Gradients are averaged once a
step, and once an epoch BatchNorm's running statistics. What else a method keeps it computes from
the whole batch, which it gathers in each step (`Batch.gather`), so it is the same everywhere. The
process of rank 0 is the program; the others train what it trains.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.system.errors import BenchError, UsageError

# Variables that torchrun sets in the environment of each process.
NUMBER_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
ADDRESS_VARIABLES = ("MASTER_ADDR", "MASTER_PORT")
# The other processes wait while rank 0 evaluates.
COLLECTIVE_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together: a single one unless torchrun started several."""

    # torch's DistributedDataParallel takes one forward and one backward pass a step. A method
    # may take more, and adversarial weight perturbation does.
    rank: int = 0
    size: int = 1
    sync_batchnorm: bool = False

    @property
    def is_leader(self) -> bool:
        """Whether this process validates, writes and prints."""
        return self.rank == 0

    @property
    def description(self) -> str:
        """Everything about the group that can alter a run, as text."""
        text = "1 device" if self.size == 1 else f"{self.size} devices"
        if self.sync_batchnorm:
            text += " with --sync-batchnorm"
        return text

    def command_line(self, command: str) -> str:
        """Return the command that starts on this group what `command` starts on one device."""
        if self.size == 1:
            return command
        launched = command.replace("python", f"torchrun --nproc-per-node {self.size}", 1)
        if self.sync_batchnorm:
            launched += " --sync-batchnorm"
        return launched

    def check_same_group(self, begun_on: str) -> None:
        """Raise BenchError for a run begun on another group, which would become a mixture."""
        if begun_on != self.description:
            raise BenchError(
                f"begun on {begun_on}, not on {self.description}: go on as it began, "
                "or --force restarts it"
            )

    def local_part(self, index: Tensor) -> Tensor:
        """Return this process's share of a batch: (B,) -> (B // size,).

        Of an epoch's last batch what cannot be shared is left out.
        """
        return index[: len(index) // self.size * self.size].chunk(self.size)[self.rank]

    def gather(self, values: Tensor) -> Tensor:
        """Return the rows of all processes in the order of the batch: (B / size, ...) -> (B, ...).

        Gradients go back to the process that a row comes from.
        """
        if self.size == 1:
            return values
        gathered: Tensor = GatheredRows.apply(values, self)
        return gathered

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes, in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        sizes = [tensor.numel() for tensor in tensors]
        means = (flat / self.size).split(sizes)  # type: ignore[no-untyped-call]
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def send(self, message: Any) -> None:
        """Tell the others from rank 0 what to do next. None ends them."""
        if self.size > 1:
            dist.broadcast_object_list([message], src=0, device=torch.device("cpu"))

    def receive(self) -> Any:
        """Return the message of rank 0."""
        messages = [None]
        dist.broadcast_object_list(messages, src=0, device=torch.device("cpu"))
        return messages[0]


class GatheredRows(torch.autograd.Function):
    """The rows of all processes, each of which may take the gradient of its own loss for them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(group.size)]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # The sum of all losses' gradients for these rows; the trainer divides by their number.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return ctx.group.local_part(total), None


SINGLE_PROCESS = ProcessGroup()


def join_process_group(
    device: torch.device, sync_batchnorm: bool
) -> tuple[ProcessGroup, torch.device]:
    """Join the group that torchrun's environment describes.

    Returns: the group, and this process's device of the kind of `device`.

    Raises:
        UsageError: the environment describes no group in full, there are more processes than
            devices, or BatchNorm cannot be synchronised on such devices.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    if size == "1":
        return SINGLE_PROCESS, device
    check_torchrun_variables(size)
    if sync_batchnorm and device.type != "cuda":
        raise UsageError(
            "--sync-batchnorm needs CUDA devices: torch.nn.SyncBatchNorm runs on no others"
        )
    if device.type == "cuda":
        device = local_cuda_device()
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), sync_batchnorm), device


def check_torchrun_variables(size: str) -> None:
    """Raise UsageError unless torchrun's variables are complete beside WORLD_SIZE."""
    missing = [name for name in NUMBER_VARIABLES if not os.environ.get(name, "").isdigit()]
    missing += [name for name in ADDRESS_VARIABLES if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={size}, but torchrun's {', '.join(missing)} are missing or no numbers: "
            "unset it to train on one device"
        )


def local_cuda_device() -> torch.device:
    """Return the CUDA device of this process. Raise UsageError if there are too few."""
    rank = int(os.environ["LOCAL_RANK"])
    count = torch.cuda.device_count()
    if rank >= count:
        raise UsageError(f"torchrun asks for more processes than there are CUDA devices, {count}")
    return torch.device("cuda", rank)


def leave_process_group() -> None:
    """End the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def synchronise_batchnorm(module: nn.Module) -> str:
    """Replace every BatchNorm inside `module` by torch.nn.SyncBatchNorm.

    Returns: the entry of the training path that says so.
    """
    nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return "BatchNorm synchronised"
