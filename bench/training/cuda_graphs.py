"""Training steps captured as CUDA graphs. A step that waits for the device runs as written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

CAPTURED = "captured"
Step = Callable[[Tensor], dict[str, Tensor]]


class StepGraphs:
    """Capture the training steps of a run as CUDA graphs, one after another in the same memory."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.memory_pool = torch.cuda.graph_pool_handle()
        self.last_step: CapturedStep | None = None

    @contextmanager
    def capture_stream(self) -> Iterator[None]:
        """Run the block on the stream where graphs are captured."""
        # A gradient made on another stream would stop a capture.
        main = torch.cuda.current_stream()
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream):
            yield
        main.wait_stream(self.stream)

    @contextmanager
    def freed_on_exit(self) -> Iterator[None]:
        """Free the memory of captured steps when the block is left."""
        try:
            yield
        finally:
            self.last_step = None

    def step_of_epoch(self, step: Step, epoch_dependent: bool) -> CapturedStep:
        """Return an epoch's step: a new one, or the captured one where no epoch differs."""
        if self.last_step is None or self.last_step.graph is None or epoch_dependent:
            self.last_step = CapturedStep(step, self)
        return self.last_step


class CapturedStep:
    """Run a step as written twice, then capture it and replay the capture.

    The first call may do what is done once: compile, or read what an epoch begins with. Where
    the second call still waits for the device nothing is captured, since a graph holds no
    decision of the host. `step` must do the same in every later call.
    """

    def __init__(self, step: Step, graphs: StepGraphs) -> None:
        self.step = step
        self.graphs = graphs
        self.calls = 0
        self.waits_for_device = False
        self.graph: torch.cuda.CUDAGraph | None = None
        self.static_input: Tensor
        self.static_result: dict[str, Tensor]

    def __call__(self, index: Tensor) -> dict[str, Tensor]:
        """Return the result of the step; the next replay overwrites it."""
        self.calls += 1
        if self.calls <= 2 or self.waits_for_device:
            return self._run_as_written(index)
        if self.graph is None:
            self.graph = self._capture(index)
        # The smaller last batch of an epoch.
        if index.shape != self.static_input.shape:
            return self._run_as_written(index)
        self.static_input.copy_(index)
        self.graph.replay()
        return self.static_result

    def _run_as_written(self, index: Tensor) -> dict[str, Tensor]:
        with self.graphs.capture_stream():
            if self.calls != 2:
                return self.step(index)
            result, self.waits_for_device = run_and_detect_sync(self.step, index)
            return result

    def _capture(self, index: Tensor) -> torch.cuda.CUDAGraph:
        self.static_input = index.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graphs.memory_pool, stream=self.graphs.stream):
            self.static_result = self.step(self.static_input)
        return graph


def run_and_detect_sync(step: Step, index: Tensor) -> tuple[dict[str, Tensor], bool]:
    """Run a step; return its result and whether the host waited for the device meanwhile."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = step(index)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    messages = [str(warning.message) for warning in caught]
    return result, any("synchronizing CUDA operation" in message for message in messages)
