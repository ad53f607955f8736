"""What makes training fast: weights that lie channels-last; on a CUDA device compiled networks and captured steps.

Methods stay plain PyTorch. What cannot be compiled or captured runs as it is written, and the record says so.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from methods.base import Net, Nets

PAYS = 500_000  # training images, all epochs together, from which on compiling, half a minute or more, is worth it
NARROW = 16  # channels, as many as a vector of AVX-512 holds
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
COMPILED, CAPTURED, NO_BF16 = "compiled", "captured", "fp32 (no bf16 here)"
Work = Callable[[Tensor], dict[str, Tensor]]


def networks(nets: Nets) -> list[Net]:
    """All that a step may run: student, teachers and what the method keeps among its parts."""
    return [
        nets.student,
        *nets.teachers.values(),
        *(part for part in nets.parts.modules() if isinstance(part, Net)),
    ]


def prepare(nets: Nets, device: torch.device) -> list[str]:
    """Lays weights channels-last and, on a CPU, keeps freed memory; returns what need not be so, for the record."""
    if device.type not in ("cpu", "cuda"):
        return []
    laid = [safe(net) or device.type == "cuda" for net in networks(nets)]
    for net in itertools.compress(networks(nets), laid):
        net.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        return []
    return ["channels-last"] * laid[0] + ["memory kept"] * keep_memory()


def safe(net: nn.Module) -> bool:
    """Whether the gradient of weights that lie channels-last leaves the rest of the memory alone on a CPU.

    That of a strided 1x1 convolution of fewer channels than a vector holds does not (torch 2.14.1 with AVX2: two to seven
    channels).
    """
    return not any(
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1) != part.stride
        and part.in_channels < NARROW
        for part in net.modules()
    )


def keep_memory() -> bool:
    """Has this process keep memory that it frees, with glibc: new pages for big tensors cost a step a tenth of its time."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another libc, another system
        return False
    return bool(set_option(M_TRIM_THRESHOLD, 2**30) and set_option(M_MMAP_THRESHOLD, 2**30))


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16, AVX512_BF16 or AMX on a CPU, compute capability 8.0 on CUDA.

    Without them it is imitated, on a CPU 2 to 15 times slower than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return (
        device.type != "cpu"
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )


def compile_networks(nets: Nets, rehearsal: Callable[[], Tensor]) -> str:
    """Compiles the networks' features; takes that back where the gradient of `rehearsal()`, a loss, fails with them.

    Returns what was done. A gradient of gradients, for one, cannot be compiled. The rehearsal leaves no trace but in the
    state of the random number generator.
    """
    torch._dynamo.config.recompile_limit = (
        64  # entries of one class of networks: modes, gradients, shapes, widths
    )
    for net in networks(nets):
        faster = torch.compile(type(net).features, dynamic=False)
        vars(net)["features"] = functools.partial(
            faster, net
        )  # a deep copy of the net gets one of its own
        net.fold_batchnorm = False  # a compiler fuses BatchNorm itself
    state = nets.student, nets.parts
    buffers = [(buffer, buffer.clone()) for module in state for buffer in module.buffers()]
    try:
        rehearsal().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the compiler fails with
        for net in networks(nets):
            vars(net).pop("features")
            net.fold_batchnorm = True
        return f"not compiled ({type(error).__name__})"
    finally:
        with torch.no_grad():
            for buffer, was in buffers:
                buffer.copy_(was)
        for module in state:
            module.zero_grad(set_to_none=True)
    return COMPILED


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled networks run as they are written: for images in batches of other sizes."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def tuned_convolutions() -> Iterator[None]:
    """Inside, cuDNN tries its algorithms on each new shape, which pays where shapes repeat."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Graphs:
    """Makes of an epoch's step, a function of one tensor, a CUDA graph. One after the other, in the same memory."""

    def __init__(self, device: torch.device, epoch_dependent: bool) -> None:
        """`epoch_dependent`: whether a captured step is of use in its own epoch alone."""
        self.epoch_dependent = epoch_dependent
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()
        self.last: Replayed | None = None

    @contextmanager
    def here(self) -> Iterator[None]:
        """Inside, work goes where graphs are captured: gradients that are made elsewhere stop a capture."""
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            yield
        main.wait_stream(self.stream)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, a captured step may be used again; afterwards its memory is free, and what it refers to."""
        try:
            yield
        finally:
            self.last = None

    def replayed(self, work: Work) -> Replayed:
        """An epoch's step; that of the epoch before where it is captured and would be the same."""
        if not self.last or not self.last.graph or self.epoch_dependent:
            self.last = Replayed(work, self)
        return self.last


class Replayed:
    """Runs `work` as it is written twice, then captures it and replays that.

    The first call may do what is done once: compile, read what an epoch begins with. Where the second still waits for
    the device, nothing is captured: a graph holds no decision of the host. `work` must do the same in every later call.
    """

    def __init__(self, work: Work, graphs: Graphs) -> None:
        self.work, self.graphs = work, graphs
        self.calls = 0
        self.waits = False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given: Tensor
        self.result: dict[str, Tensor]

    def __call__(self, given: Tensor) -> dict[str, Tensor]:
        """The result of `work`; a replay's is overwritten by the next."""
        self.calls += 1
        if self.calls <= 2 or self.waits:
            return self._as_written(given)
        if self.graph is None:
            self._capture(given)
        assert self.graph
        self.given.copy_(given)
        self.graph.replay()
        return self.result

    def _as_written(self, given: Tensor) -> dict[str, Tensor]:
        with self.graphs.here():
            if self.calls != 2:
                return self.work(given)
            result, self.waits = watched(self.work, given)
            return result

    def _capture(self, given: Tensor) -> None:
        self.given = given.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graphs.pool, stream=self.graphs.stream):
            self.result = self.work(self.given)
        self.graph = graph


def watched(work: Work, given: Tensor) -> tuple[dict[str, Tensor], bool]:
    """The result, and whether the host waited for the device on the way."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = work(given)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return result, any("synchronizing CUDA operation" in str(warning.message) for warning in heard)
