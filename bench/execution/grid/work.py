"""One run of a grid in one process: claim it, carry it out, say how it ended."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch

from bench.execution.cost import Cost
from bench.execution.evaluation import choose_attack_search
from bench.execution.inputs import LoadData, cached_loader
from bench.execution.job import RunContext, is_recorded, run_job
from bench.execution.plan import PlannedRun, work_folder
from bench.protocol.options import ProtocolOptions
from bench.system.errors import BenchError, one_line
from bench.system.log import NOTE
from bench.system.progress import Progress
from bench.tracking.claims import HeldClaim, LostClaimError
from bench.tracking.outage import GridStopError, is_full_disk, patiently
from bench.tracking.store import TrackingStore
from bench.training.trainer import STATE
from leaderboards.schema.fields import Tag

# busy: another process has it. died: the process is gone. stop: no other run would do better.
End: TypeAlias = Literal["recorded", "failed", "busy", "died", "stop"]


class QueuedRun(NamedTuple):
    """A run that waits for a worker, its number in the overview and its cost."""

    number: int
    run: PlannedRun
    cost: Cost


class RunOutcome(NamedTuple):
    """How a run ended, and the last line about it."""

    end: End
    message: str = ""


def execute_beside_others(
    open_worker: Callable[[], Worker], item: QueuedRun, total: int
) -> RunOutcome:
    """Carry out one of `total` runs in a process of several; return how it ended.

    A store that this process cannot open stops the grid.
    """
    try:
        worker = open_worker()
    except BenchError as error:
        return RunOutcome("stop", f"{platform.node()}: {error}")
    estimates = {item.number: (item.cost.train, item.cost.evaluate)}
    return worker.execute_run(item, Progress(estimates, total))


class Worker:
    """A process that carries out runs of a grid, one after another."""

    def __init__(self, context: RunContext, load: LoadData) -> None:
        self.context, self.load = context, load

    @classmethod
    def open(cls, options: ProtocolOptions, device: torch.device, code: dict[str, str]) -> Worker:
        """Return a worker of this process, with a store and data of its own."""
        search = choose_attack_search(options, device)
        context = RunContext(TrackingStore(options.store), device, code, search=search)
        return cls(context, cached_loader(options.data_root))

    def execute_run(self, item: QueuedRun, progress: Progress) -> RunOutcome:
        """Claim and carry out a run; return how it ended."""
        run, code = item.run, self.context.code.get(Tag.CODE_COMMIT, "")
        try:
            held = patiently(lambda: self.context.claims(run).take(run.spec.id, code))
            if not held:
                return RunOutcome("busy")
            with held:
                if patiently(lambda: is_recorded(run, self.context)):
                    return RunOutcome("recorded", "recorded by another process")
                return self._execute_claimed(item, held, progress)
        except GridStopError as error:
            return RunOutcome("stop", str(error))

    def _execute_claimed(self, item: QueuedRun, held: HeldClaim, progress: Progress) -> RunOutcome:
        run = item.run
        has_state = (work_folder(self.context.root, run.spec) / STATE).exists()
        progress.start(item.number, run.label, run.spec.training.epochs)
        progress.log(f"{run.label}: {'continues' if has_state else 'starts'}")
        passes = item.cost.student_passes
        try:
            data = self.load(run.spec)
            message = run_job(run, self.context, held, data, passes, progress)
            return RunOutcome("recorded", message)
        except GridStopError:
            raise
        except LostClaimError as error:
            progress.log(f"{run.label}: {error}")
            return RunOutcome("busy")
        except Exception as error:
            progress.log(traceback.format_exc(), NOTE)
            if is_full_disk(error):
                raise GridStopError(f"{run.label}: {one_line(error)}") from error
            if isinstance(error, BenchError):
                return RunOutcome("failed", f"failed: {error}")
            # The tracking store, for one, may have gone away since it was opened.
            return RunOutcome("failed", f"failed: {type(error).__name__}: {one_line(error)}")
