"""The analysis of many runs: which, by how many processes, and what they are to each other."""

from __future__ import annotations

import shlex
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TypeAlias

from bench.analysis import group
from bench.analysis.job import AnalysisContext, Comparison, analyze_run, is_analysed
from bench.analysis.options import AnalyzeOptions
from bench.execution.grid.processes import Processes, check_workers, choose_devices
from bench.execution.suite_file import resolve_experiment
from bench.records import trained
from bench.system.environment import resolve_device
from bench.system.errors import BenchError, UsageError, continue_hint, one_line
from bench.system.log import LOGGER, NOTE, RESULT, open_log_file
from bench.system.progress import ParallelProgress
from bench.tracking.store import TrackingStore, store_exists
from leaderboards.render.numbers import format_count
from leaderboards.schema.fields import Tag, in_suite
from leaderboards.schema.record import Record

Pair: TypeAlias = tuple[Record, Comparison]
Result: TypeAlias = tuple[int, str, bool]  # position, last line, whether it succeeded
Failures: TypeAlias = dict[str, str]  # why, by what could not be done
# Suite, data set, model and seed of students that are compared with each other.
GroupKey: TypeAlias = tuple[str, str, str, int]

POLL_SECONDS = 1.0  # between looks at what the processes have done


def analyze_runs(options: AnalyzeOptions) -> tuple[list[str], Failures]:
    """Analyse the runs that are asked for; return the ids of their specs, and what failed.

    Raise BenchError for a store without records, UsageError for words that name no student.
    """
    check_workers(options.workers)
    if options.runs and options.suite:
        raise UsageError("runs and --suite: one of them")
    device = resolve_device(options.device)
    if not store_exists(options.store):
        raise BenchError(f"nothing is recorded in {str(options.store)!r} yet")
    records = trained.read_records(options.store)
    chosen = choose_runs(options, records)
    todo = [record for record in chosen if options.force or not is_analysed(record)]
    context = AnalysisContext(TrackingStore(options.store), options.data_root, device)
    open_log_file(options.store, f"analyze {len(todo)} of {len(chosen)} runs")
    LOGGER.info(f"{len(todo)} to analyse, {len(chosen) - len(todo)} already analysed")
    pairs = [(record, choose_teacher(record, records)) for record in todo]
    failures = analyse_all(options, context, pairs)
    failures |= compare_groups(options, context, chosen)
    if not failures:
        default = options.store == AnalyzeOptions.store
        flag = "" if default else f" --store {shlex.quote(str(options.store))}"
        LOGGER.log(RESULT, f"`python -m bench leaderboard{flag}` shows them on pages")
    return [record.spec_id for record in chosen], failures


def choose_runs(options: AnalyzeOptions, records: Sequence[Record]) -> list[Record]:
    """Return the records of the students that are asked for, all without a name.

    Raise UsageError for a word that names no student.
    """
    students = [record for record in records if record.spec.role == "student"]
    if options.suite:
        suite = resolve_experiment(options.suite)
        students = [record for record in students if in_suite(record.spec.suite, suite)]
        if not students:
            raise UsageError(f"--suite {options.suite}: no student of it is recorded")
    if not options.runs:
        return students
    chosen: dict[str, Record] = {}
    for word in options.runs:
        for record in trained.find_records(options.store, word):
            if record.spec.role != "student":
                raise UsageError(f"{word!r} is a teacher: its students are compared with it")
            chosen[record.spec_id] = record
    return [*chosen.values()]


def choose_teacher(record: Record, records: Sequence[Record]) -> Comparison:
    """Return the teacher that a student is compared with.

    A method that reads no teacher is compared with the robust one of most other students of its
    suite and data set: what a student has in common with a teacher it never saw.
    """
    spec = record.spec
    for role in ("robust", *sorted(spec.teachers)):
        if role in spec.teachers:
            return Comparison(spec.teachers[role], record.teacher_sha256.get(role, ""))
    others = Counter(
        other.spec.teachers["robust"]
        for other in records
        if (other.spec.suite, other.spec.dataset) == (spec.suite, spec.dataset)
        and "robust" in other.spec.teachers
    )
    return Comparison(others.most_common(1)[0][0]) if others else Comparison()


def analyse_all(
    options: AnalyzeOptions, context: AnalysisContext, pairs: Sequence[Pair]
) -> Failures:
    """Analyse runs, in processes if there are to be several; return what failed."""
    tally, failures = ParallelProgress(range(1, len(pairs) + 1)), Failures()
    devices = choose_devices(options.workers, context.device)[: len(pairs)]
    several = len(devices) > 1
    results = (
        analyse_in_processes(options, pairs, devices) if several else analyse_here(context, pairs)
    )
    for number, message, succeeded in results:
        label = describe(pairs[number][0])
        tally.finish(number + 1, label, message, succeeded)
        if not succeeded:
            failures[label] = message
    return failures


def describe(record: Record) -> str:
    """Return the name of a run for people."""
    variant = record.tags.get(Tag.VARIANT, "")
    return f"{record.spec.label} ({variant})" if variant else record.spec.label


def analyse_here(context: AnalysisContext, pairs: Sequence[Pair]) -> Iterator[Result]:
    """Analyse runs one after another."""
    for number, pair in enumerate(pairs):
        yield number, *try_to_analyse(*pair, context)


def analyse_in_processes(
    options: AnalyzeOptions, pairs: Sequence[Pair], devices: Sequence[str]
) -> Iterator[Result]:
    """Analyse runs in processes, one for each of `devices`."""
    died = f"failed: its process died; {continue_hint(options.force)} continues", False
    waiting, busy = deque(enumerate(pairs)), 0
    with Processes(prepare, (options,), devices, died) as processes:
        while waiting or busy:
            while waiting and processes.has_room():
                processes.start(waiting.popleft())
                busy += 1
            for (number, _), result in processes.wait(POLL_SECONDS):
                busy -= 1
                yield number, *result


def prepare(options: AnalyzeOptions) -> Callable[[tuple[int, Pair]], tuple[str, bool]]:
    """Return what analyses a run in one of several processes."""

    @cache
    def open_context() -> AnalysisContext:
        device = resolve_device(options.device)
        return AnalysisContext(TrackingStore(options.store), options.data_root, device)

    def analyse(item: tuple[int, Pair]) -> tuple[str, bool]:
        try:
            context = open_context()
        except BenchError as error:
            return f"failed: {error}", False
        return try_to_analyse(*item[1], context)

    return analyse


def try_to_analyse(
    record: Record, comparison: Comparison, context: AnalysisContext
) -> tuple[str, bool]:
    """Return a line with numbers of a run, or with the cause of its failure."""
    start = time.monotonic()
    try:
        text = analyze_run(record, comparison, context)
    # The networks of others raise anything.
    except Exception as error:
        return f"failed: {describe_error(error)}", False
    return f"{text}, {time.monotonic() - start:.0f} s", True


def describe_error(error: Exception) -> str:
    """Return the cause of a failure in a line; log where it was raised."""
    LOGGER.log(NOTE, "".join(traceback.format_exception(error)))
    kind = "" if isinstance(error, BenchError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error)}"


def compare_groups(
    options: AnalyzeOptions, context: AnalysisContext, chosen: Sequence[Record]
) -> Failures:
    """Judge the students of each group on each other's examples; return what failed."""
    keys = {group_key(record) for record in chosen}
    groups: dict[GroupKey, list[Record]] = defaultdict(list)
    for record in trained.read_records(options.store):
        if record.spec.role == "student" and group_key(record) in keys and is_analysed(record):
            groups[group_key(record)].append(record)
    failures = Failures()
    for key, records in groups.items():
        label = " ".join(map(str, (*key[1:3], "seed", key[3])))
        try:
            if group.compare(records, context, options.force):
                students = format_count(len(records), "student")
                LOGGER.info(f"{label}: {students} on the teacher's and each other's examples")
        # As above.
        except Exception as error:
            failures[label] = f"not compared with each other: {describe_error(error)}"
            LOGGER.error(f"{label}: {failures[label]}")
    return failures


def group_key(record: Record) -> GroupKey:
    """Return what students of a group have in common."""
    spec = record.spec
    return spec.suite, spec.dataset, spec.arch, spec.seed
