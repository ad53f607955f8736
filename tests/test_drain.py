"""Which run of a grid is next, and what becomes of it, with an executor that only pretends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clocks import pretend_time

from bench.execution.cost import Cost
from bench.execution.grid import drain
from bench.execution.grid.drain import Drain
from bench.execution.grid.work import QueuedRun, RunOutcome
from bench.execution.plan import PlannedRun, plan_runs
from bench.protocol.options import RunOptions
from bench.system.errors import BenchError
from bench.tracking.claims import Claim
from bench.tracking.listing import ListedRun
from leaderboards.schema.fields import FAILED, FINISHED, Tag

RECORDED = RunOutcome("recorded", "clean 90.0")


class PretendedStore:
    """A tracking store with claims of others and runs that they ended."""

    def __init__(self) -> None:
        self.living: list[Claim] = []
        self.ended: dict[str, dict[str, str]] = {FINISHED: {}, FAILED: {}}
        self.listed: Callable[[], None] = lambda: None

    def claims(self, _: str) -> Any:
        return SimpleNamespace(look=lambda: (self.living, []))

    def runs_with_status(self, _: str, status: str) -> list[ListedRun]:
        self.listed()
        return [
            ListedRun(f"run of {key}", status, 0, {Tag.SPEC_ID: key, Tag.STATUS_NOTE: note})
            for key, note in self.ended[status].items()
        ]


class PretendedExecutor:
    """Ends each run by a function of it, `room` at once."""

    def __init__(self, end: Callable[[PlannedRun], RunOutcome], room: int = 1) -> None:
        self.end, self.room = end, room
        self.waiting: list[QueuedRun] = []
        self.order: list[str] = []

    def has_room(self) -> bool:
        return len(self.waiting) < self.room

    def start(self, item: QueuedRun) -> None:
        self.order.append(name_of(item.run))
        self.waiting.append(item)

    def wait(self, seconds: float) -> list[tuple[QueuedRun, RunOutcome]]:
        if seconds == 0 and self.room > 1:
            return []
        ended = [(item, self.end(item.run)) for item in self.waiting]
        self.waiting = []
        return ended


class Lines:
    """The last lines of runs, by their names."""

    def __init__(self) -> None:
        self.ends: dict[int, tuple[str, bool]] = {}

    def finish(self, number: int, label: str, result: str, succeeded: bool) -> None:
        assert number not in self.ends, label
        self.ends[number] = result, succeeded


def name_of(run: PlannedRun) -> str:
    return f"{run.spec.method}{'*' * (run.spec.role == 'teacher')} {run.spec.seed}"


@pytest.fixture
def store() -> PretendedStore:
    return PretendedStore()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(drain, "is_marked", lambda *_: False)
    return pretend_time(monkeypatch, drain)


def plan(tmp_path: Path, methods: str = "rslad,pgd_at", seeds: str = "0,1") -> list[PlannedRun]:
    options = RunOptions(store=tmp_path, method=methods, student="resnet8-w4", seeds=seeds)
    return plan_runs(options, {})


def drain_of(
    runs: list[PlannedRun], store: PretendedStore, lines: Lines, recorded: bool = True
) -> Drain:
    items = [QueuedRun(number, run, Cost(1.0, 1.0, 1.0)) for number, run in enumerate(runs, 1)]
    context: Any = SimpleNamespace(store=store)
    return Drain(items, context, lines)


def test_teachers_come_first_and_the_order_is_that_of_the_command(
    tmp_path: Path, store: PretendedStore
) -> None:
    executor, lines = PretendedExecutor(lambda _: RECORDED), Lines()
    assert not drain_of(plan(tmp_path), store, lines).run(executor)
    assert executor.order == ["trades* 0", "rslad 0", "rslad 1", "pgd_at 0", "pgd_at 1"]
    assert [*lines.ends.values()] == [(RECORDED.message, True)] * 5


def test_students_wait_for_their_own_teacher_alone(tmp_path: Path, store: PretendedStore) -> None:
    executor = PretendedExecutor(lambda _: RECORDED, room=3)
    drain_of(plan(tmp_path), store, Lines()).run(executor)
    assert executor.order[:3] == ["trades* 0", "pgd_at 0", "pgd_at 1"]


def test_a_failed_teacher_ends_its_students_and_no_other_run(
    tmp_path: Path, store: PretendedStore
) -> None:
    def end(run: PlannedRun) -> RunOutcome:
        return RunOutcome("failed", "out of luck") if run.spec.role == "teacher" else RECORDED

    lines = Lines()
    failed = drain_of(plan(tmp_path), store, lines).run(PretendedExecutor(end))
    assert len(failed) == 3
    assert [succeeded for _, succeeded in lines.ends.values()].count(True) == 2
    assert "not run, its teacher resnet8-w16-trades" in lines.ends[2][0]


def test_a_run_that_kills_its_process_is_tried_twice(tmp_path: Path, store: PretendedStore) -> None:
    def end(run: PlannedRun) -> RunOutcome:
        return RunOutcome("died") if name_of(run) == "pgd_at 0" else RECORDED

    executor, lines = PretendedExecutor(end), Lines()
    (message,) = drain_of(plan(tmp_path), store, lines).run(executor).values()
    assert message == "failed: its process died 2 times"
    assert executor.order.count("pgd_at 0") == 2
    assert executor.order.count("pgd_at 1") == 1


def test_what_stops_every_run_stops_the_grid(tmp_path: Path, store: PretendedStore) -> None:
    executor = PretendedExecutor(lambda _: RunOutcome("stop", "the store is away"))
    with pytest.raises(BenchError, match="the store is away"):
        drain_of(plan(tmp_path), store, Lines()).run(executor)
    assert len(executor.order) == 1


def test_what_others_are_at_is_left_to_them(tmp_path: Path, store: PretendedStore) -> None:
    runs = plan(tmp_path, "pgd_at", "0,1,2")
    store.living = [Claim(runs[0].spec.id, "another")]

    def end(run: PlannedRun) -> RunOutcome:
        if name_of(run) == "pgd_at 2":
            store.living = []
            store.ended[FINISHED] = {runs[0].spec.id: ""}
        return RECORDED

    executor, lines = PretendedExecutor(end), Lines()
    drain_of(runs, store, lines).run(executor)
    # Without a listing in between it would have been tried, and been busy or recorded.
    assert executor.order.count("pgd_at 0") <= 1
    assert len(lines.ends) == 3


def test_a_run_that_another_one_has_is_tried_again_later(
    tmp_path: Path, store: PretendedStore, fast: list[float]
) -> None:
    ends = {"pgd_at 0": iter([RunOutcome("busy"), RunOutcome("busy"), RECORDED])}

    def end(run: PlannedRun) -> RunOutcome:
        return next(ends.get(name_of(run), iter([RECORDED])))

    executor, lines = PretendedExecutor(end), Lines()
    assert not drain_of(plan(tmp_path, "pgd_at"), store, lines).run(executor)
    assert executor.order == ["pgd_at 0", "pgd_at 1", "pgd_at 0", "pgd_at 0"]
    assert fast[0] > drain.BUSY_SECONDS


def test_a_failure_elsewhere_ends_a_run_unless_it_is_an_earlier_one(
    tmp_path: Path, store: PretendedStore, fast: list[float]
) -> None:
    runs = plan(tmp_path, "pgd_at", "0,1,2")
    ids = [run.spec.id for run in runs]
    store.ended[FAILED] = {ids[1]: "of yesterday"}
    store.living = [Claim(ids[0], "another")]

    def end(_: PlannedRun) -> RunOutcome:
        store.ended[FAILED] |= {ids[0]: "no luck"}
        store.living = []
        fast[0] += 10
        return RECORDED

    executor, lines = PretendedExecutor(end), Lines()
    failed = drain_of(runs, store, lines).run(executor)
    assert [*failed.values()] == ["failed in another process: no luck"]
    assert "pgd_at 1" in executor.order


def test_a_process_with_nothing_to_do_soon_sees_what_others_ended(
    tmp_path: Path, store: PretendedStore, fast: list[float]
) -> None:
    """Also where a listing takes long, as beside many others."""
    (run,) = plan(tmp_path, "pgd_at", "0")
    store.living = [Claim(run.spec.id, "another")]

    def take_long() -> None:
        fast[0] += 10
        if fast[0] > 100:
            store.living, store.ended[FINISHED] = [], {run.spec.id: ""}

    store.listed, lines = take_long, Lines()
    drain_of([run], store, lines).run(PretendedExecutor(lambda _: RECORDED))
    assert lines.ends == {1: ("recorded by another process", True)}
    assert fast[0] < 250


def test_a_run_to_be_repeated_is_not_ended_by_the_one_before(
    tmp_path: Path, store: PretendedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has it, and the finished run is the marked one."""
    (run,) = plan(tmp_path, "pgd_at", "0")
    store.living, store.ended[FINISHED] = [Claim(run.spec.id, "another")], {run.spec.id: ""}
    marked: list[str] = []

    def is_marked(_: PlannedRun, __: Any, run_id: str) -> bool:
        marked.append(run_id)
        store.living = []
        return True

    monkeypatch.setattr(drain, "is_marked", is_marked)
    executor = PretendedExecutor(lambda _: RECORDED)
    drain_of([run], store, Lines()).run(executor)
    assert set(marked) == {f"run of {run.spec.id}"}
    assert executor.order == ["pgd_at 0"]


def test_several_processes_begin_with_different_runs(tmp_path: Path, store: PretendedStore) -> None:
    runs = plan(tmp_path, "pgd_at", ",".join(map(str, range(20))))
    store.living = [Claim(run.spec.id, "another") for run in runs[:9]]
    firsts = [drain_of(runs, store, Lines())._next_item() for _ in range(200)]
    seeds = {item.run.spec.seed for item in firsts if item}
    assert min(seeds) == 9
    assert max(seeds) == 18
    assert len(seeds) > 5
