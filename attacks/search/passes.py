"""Passes of the network for a search: in a precision, of few sizes, compiled and captured."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from attacks.attacked_model import AttackedModel
from attacks.isolation import backends
from attacks.search.compiling import Network, compile_network

# What a search keeps of each slot, by name: (B, ...). "x", "y", "candidate" (the last adversarial
# example or iterate), "margin" (by how much it fools, -inf for none), "done" (the run is at its
# end) and "finite" (no logit was NaN) belong to the slots, the others to the search.
State: TypeAlias = dict[str, Tensor]
Step: TypeAlias = Callable[[State], State]
Loss: TypeAlias = Callable[[Tensor], Tensor]


class Passes:
    """What a search sees of a model: logits, gradients, and whether the reference is fooled.

    size: images in a pass. refused: candidates that fooled the search's network and not the
    reference model. compiles: whether the first step compiles the network for passes of its size.
    """

    def __init__(self, model: AttackedModel, size: int, precision: str) -> None:
        self.model, self.size, self.precision = model, size, precision
        self.refused, self.compiles = 0, False
        self.compiled: Network | None = None
        self.compiled_size = 0
        self.graphs: dict[int, _StepGraph] = {}
        self.captures = next(model.buffers(), model.anchor).is_cuda
        # Nothing in the memory of a graph outlives its replay: all of them share it.
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None

    def logits(self, x: Tensor) -> Tensor:
        """Return float32 logits, in as many passes as it takes: (N, C, H, W) -> (N, K)."""
        self.model.forwards += len(x)
        with torch.no_grad():
            return torch.cat([self._network(images) for images in torch.split(x, self.size)])

    def all_logits(self, x: Tensor) -> Tensor:
        """Return the logits outside of a step: (N, K)."""
        with low_precision(self.precision):
            return self.logits(x)

    def gradient(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, K), losses (B,) and their gradients at x: (B, C, H, W)."""
        self.model.forwards += len(x)
        self.model.backwards += len(x)
        images = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = self._network(images)
            losses = loss(logits)
            (gradient,) = torch.autograd.grad(losses.sum(), images)
        return logits.detach(), losses.detach(), gradient.contiguous()

    def _network(self, x: Tensor) -> Tensor:
        network: Network = self.model.network
        if self.compiled is not None and len(x) == self.compiled_size:
            network = self.compiled
        with self._autocast(x):
            return network(x).float()

    def _autocast(self, x: Tensor) -> torch.autocast:
        enabled = self.precision == "bf16"
        return torch.autocast(x.device.type, torch.bfloat16, enabled=enabled)

    def confirm(self, adv: Tensor, y: Tensor) -> list[bool]:
        """Return which images (n, C, H, W) the reference model misclassifies, in full precision."""
        wrong = []
        for images, labels in zip(
            torch.split(adv, self.size), torch.split(y, self.size), strict=True
        ):
            with torch.no_grad():
                logits = self.model.reference_model(images)
            self.model.forwards += len(images)
            wrong.append(logits.argmax(dim=1) != labels)
        verdicts: list[bool] = torch.cat(wrong).tolist()
        return verdicts

    def run_step(self, step: Step, state: State) -> None:
        """Take a step: it changes `state` in place."""
        graph = self.graphs.get(len(state["y"]))
        with low_precision(self.precision):
            if self.compiles:
                self._compile(state["x"][: self.size])
            if graph:
                graph.replay(self)
            elif self.captures:
                self._capture(step, state)
            else:
                state |= step(state)

    def _compile(self, x: Tensor) -> None:
        self.compiles, self.compiled_size = False, len(x)
        with self._autocast(x):
            self.compiled = compile_network(self.model.network, x)

    def _capture(self, step: Step, state: State) -> None:
        """Take a step, and keep it as a graph for the steps to come."""
        counts = self.model.forwards, self.model.backwards
        try:
            self.graphs[len(state["y"])] = _StepGraph(step, state, self)
        except torch.OutOfMemoryError:
            raise
        # What a model may do that cannot be captured has no common class of errors.
        except Exception as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"no CUDA graph of the search, which is slower: {reason}", stacklevel=2)
            self.captures = False
            self.model.forwards, self.model.backwards = counts
            state |= step(state)

    def adopt(self, state: State) -> State:
        """Return the tensors that the graph of this size works on, with the values of `state`."""
        graph = self.graphs.get(len(state["y"])) if state else None
        if graph is None:
            return state
        for name, values in graph.state.items():
            if values is not state[name]:
                values.copy_(state[name])
        return graph.state


class _StepGraph:
    """A step that a device replays without the host. It works on the tensors of one state."""

    def __init__(self, step: Step, state: State, passes: Passes) -> None:
        before = passes.model.forwards, passes.model.backwards
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # The first step may wait: libraries choose their algorithms.
            changed = step(state)
        torch.cuda.current_stream().wait_stream(stream)
        after = passes.model.forwards, passes.model.backwards
        self.forwards, self.backwards = (
            now - then for now, then in zip(after, before, strict=True)
        )
        self.state = {name: values.clone() for name, values in state.items()}
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=passes.pool):
            for name, values in step(self.state).items():
                self.state[name].copy_(values)
        passes.model.forwards, passes.model.backwards = after
        for name, values in (state | changed).items():
            self.state[name].copy_(values)
        state |= self.state

    def replay(self, passes: Passes) -> None:
        """Take the step."""
        self.graph.replay()
        passes.model.forwards += self.forwards
        passes.model.backwards += self.backwards


@contextmanager
def low_precision(precision: str) -> Iterator[None]:
    """Let float32 products and convolutions of a CUDA device run in TF32, if asked for."""
    if precision != "tf32":
        yield
        return
    for backend in (backends.cuda.matmul, backends.cudnn.conv):
        backend.fp32_precision = "tf32"
    try:
        yield
    finally:
        for backend in (backends.cuda.matmul, backends.cudnn.conv):
            backend.fp32_precision = "ieee"
