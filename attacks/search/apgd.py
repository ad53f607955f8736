"""Auto-PGD in slots: each image has its own step size, best point and place in the schedule.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.build import Settings
from attacks.catalog import Attack
from attacks.components.apgd import ROUNDING_SLACK
from attacks.search.batches import Batch, BatchedSearch
from attacks.search.fooling import keep_fooling, per_image
from attacks.search.passes import Passes, State
from attacks.search.slots import Job

MOMENTUM = 0.75
# The share of increases of the loss below which the step is halved.
RISING = 0.75


class APGDSearch(BatchedSearch):
    """Auto-PGD on the cross-entropy or a DLR loss; a round is a restart or a target."""

    def __init__(self, attack: Attack, passes: Passes, settings: Settings, x: Tensor) -> None:
        super().__init__(attack, passes, settings, x)
        self.kind, self.rounds_per_image = attack.kind, attack.restarts
        self.checks, self.lengths = _schedule(attack.steps, x.device)
        if attack.kind == "apgd-t":
            self.targets = self.likeliest(settings.num_targets)
            self.rounds_per_image = settings.num_targets
        self.begin_rounds()

    def draw(self, batch: Batch, count: int) -> Tensor:
        """Draw the directions of starts, on the CPU: (n, C, H, W)."""
        shape = (count, *self.x.shape[1:])
        if self.norm == "Linf":
            noise = 2 * torch.rand(shape, generator=batch.host) - 1
        else:
            noise = torch.randn(shape, generator=batch.host)
        return noise.to(self.x.device)

    def begin(self, jobs: list[Job], x: Tensor) -> State:
        noise = self.starts(jobs)
        if self.norm == "Linf":
            largest = noise.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1)
            start = x + self.eps * noise / largest
        else:
            start = x + self.eps * noise / (_l2(noise) + 1e-12)
        start = start.clamp(0, 1)
        zeros = torch.zeros(len(jobs), device=x.device)
        state = {
            "age": zeros.long(),
            "adv": start, "before": start, "best": start, "best_gradient": torch.zeros_like(x),
            "best_loss": zeros - torch.inf, "checked_loss": zeros, "last_loss": zeros,
            "rises": zeros, "reduced": zeros == 0, "step_size": zeros + 2 * self.eps,
        }  # fmt: skip
        if self.kind == "apgd-t":
            state["target"] = self.pick(self.targets, jobs)
        return state

    def step(self, state: State) -> State:
        loss = partial(self._loss, y=state["y"], target=state.get("target"))
        adv = state["adv"]
        logits, losses, gradient = self.passes.gradient(adv, loss)
        change = keep_fooling(state, adv, logits, self.eps + ROUNDING_SLACK, self.norm)
        change |= self._adapt(state, losses, gradient)
        adv, gradient = change["adv"], change.pop("gradient")
        first = per_image(state["age"] == 0)
        change |= {"adv": self._move(state, adv, gradient, change["step_size"], first)}
        return change | {
            "before": adv, "age": state["age"] + 1, "done": state["age"] >= self.steps,
        }  # fmt: skip

    def _adapt(self, state: State, losses: Tensor, gradient: Tensor) -> State:
        """Keep the best point; at a checkpoint of the schedule return there with half the step."""
        adv, age = state["adv"], state["age"]
        first, iteration = age == 0, (age - 1).clamp(0, self.steps - 1)
        better = losses > state["best_loss"]
        best_loss = torch.where(better, losses, state["best_loss"])
        best = torch.where(per_image(better), adv, state["best"])
        best_gradient = torch.where(per_image(better), gradient, state["best_gradient"])
        # The official code compares the first loss with a row of zeros.
        rises = (state["rises"] + (losses > state["last_loss"])).masked_fill(first, 0)
        check = self.checks[iteration] & ~first
        oscillates = rises <= RISING * self.lengths[iteration]
        stuck = ~state["reduced"] & (state["checked_loss"] >= best_loss)
        reduce = check & (oscillates | stuck)
        return {
            "best": best, "best_gradient": best_gradient, "best_loss": best_loss,
            "rises": rises.masked_fill(check, 0), "last_loss": losses.masked_fill(first, 0),
            "checked_loss": torch.where(check | first, best_loss, state["checked_loss"]),
            "reduced": torch.where(check, reduce, state["reduced"]),
            "step_size": torch.where(reduce, state["step_size"] / 2, state["step_size"]),
            "adv": torch.where(per_image(reduce), best, adv),
            "gradient": torch.where(per_image(reduce), best_gradient, gradient),
        }  # fmt: skip

    def _move(
        self, state: State, adv: Tensor, gradient: Tensor, step_size: Tensor, first: Tensor
    ) -> Tensor:
        x, eps, size = state["x"], self.eps, per_image(step_size)
        share = torch.where(first, 1.0, MOMENTUM)
        drift = (adv - state["before"]) * (1 - share)
        if self.norm == "Linf":
            low, high = x - eps, x + eps
            moved = adv + size * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, low), high).clamp(0, 1)
            moved = adv + (moved - adv) * share + drift
            return torch.minimum(torch.maximum(moved, low), high).clamp(0, 1)
        moved = adv + size * gradient / (_l2(gradient) + 1e-12)
        moved = self._project(x, moved, 0.0)
        return self._project(x, adv + (moved - adv) * share + drift, 1e-12)

    def _project(self, x: Tensor, moved: Tensor, slack: float) -> Tensor:
        delta = moved - x
        norm = _l2(delta)
        length = torch.clamp(norm + slack, max=self.eps)
        return (x + delta / (norm + 1e-12) * length).clamp(0, 1)

    def _loss(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        if self.kind == "apgd-ce":
            return F.cross_entropy(logits, y, reduction="none")
        ordered, classes = logits.sort(dim=1)
        own = logits.gather(1, y[:, None]).squeeze(1)
        if target is not None:
            spread = ordered[:, -1] - 0.5 * ordered[:, -3] - 0.5 * ordered[:, -4] + 1e-12
            return -(own - logits.gather(1, target[:, None]).squeeze(1)) / spread
        other = torch.where(classes[:, -1] == y, ordered[:, -2], ordered[:, -1])
        return -(own - other) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def _schedule(steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return by iteration whether it ends a period, and the length of its period: (steps,)."""
    period, shortest = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
    checks, lengths = torch.zeros(steps, dtype=torch.bool), torch.zeros(steps)
    start = 0
    while start + period <= steps:
        checks[start + period - 1] = True
        lengths[start : start + period] = period
        start, period = start + period, max(period - max(int(0.03 * steps), 1), shortest)
    return checks.to(device), lengths.to(device)


def _l2(delta: Tensor) -> Tensor:
    return (delta**2).sum(dim=(1, 2, 3), keepdim=True).sqrt()
