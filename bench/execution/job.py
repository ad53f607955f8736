"""One run from its first epoch to its record: train, evaluate, record.

Interrupted at any point, a run continues where it was.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench import models
from bench.datasets.splits import Data
from bench.execution.evaluation import CheckpointEvaluation, evaluate_checkpoint
from bench.execution.plan import PlannedRun, work_folder
from bench.execution.run_teachers import check_teachers
from bench.models import checkpoint
from bench.models.size import size_metrics
from bench.system import environment
from bench.system.errors import BenchError, one_line
from bench.system.files import sha256_of_file
from bench.system.progress import Progress
from bench.teachers import cards
from bench.teachers.checks import MIN_TEST_IMAGES, is_by_chance, percent_true
from bench.tracking import links, note
from bench.tracking.claims import Claims, HeldClaim, LostClaimError
from bench.tracking.copying import copy_results
from bench.tracking.outage import GridStopError, patiently
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import TrackingStore
from bench.training.distributed import SINGLE_PROCESS, ProcessGroup
from bench.training.trainer import STATE, State, Trainer, TrainingModule, derive_seed
from leaderboards.read.records import read_record
from leaderboards.schema import metrics
from leaderboards.schema.checkpoints import BEST, CHECKPOINTS
from leaderboards.schema.fields import FAILED, FINISHED, KILLED, RECORD_TAGS, Artifact, Tag
from leaderboards.schema.record import Record, RecordError, build_record

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

# In the folder of an unfinished run: the id of the finished run that it is to replace.
REPEAT_MARK = "again"
# Compiled code, which later runs of the store need not compile.
COMPILED_CODE = "compiled"
SHOWN_ACCURACIES = ("clean", "pgd20", "aa")


@dataclass(frozen=True)
class RunContext:
    """Where and with what runs are carried out.

    code: commit and state of the source. search: of attacks, and its precision.
    """

    store: TrackingStore
    device: torch.device
    code: dict[str, str]
    group: ProcessGroup = SINGLE_PROCESS
    search: tuple[str, str] = ("exact", "fp32")

    def __post_init__(self) -> None:
        # The compiler's own choice is the folder of temporary files.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.root.resolve() / COMPILED_CODE))

    @property
    def root(self) -> Path:
        """The folder of the store."""
        return self.store.root

    def claims(self, run: PlannedRun) -> Claims:
        """Return the claims on the runs of a run's suite."""
        return self.store.claims(run.spec.suite)


@dataclass(frozen=True)
class Job:
    """One run being carried out: in which folder, on which data, under which MLflow run."""

    run: PlannedRun
    context: RunContext
    held: HeldClaim
    data: Data
    folder: Path
    logger: RunLogger
    progress: Progress

    def tick(self, stage: str, done: int, total: int) -> None:
        """Show how much of a stage is done. Raise LostClaimError if another process took over."""
        self.held.check()
        self.progress.tick(stage, done, total)
        self.held.doing = self.progress.summary(stage, done, total)


def run_job(
    run: PlannedRun,
    context: RunContext,
    held: HeldClaim,
    data: Data,
    student_passes: float,
    progress: Progress,
) -> str:
    """Train, evaluate and record one run that this process claimed; return a line with its result.

    `student_passes` is the number of forward passes of the student per training image, estimated.

    Raise BenchError if something stopped it: the record says so and its state stays on disk.
    """
    folder = work_folder(context.root, run.spec)
    folder.mkdir(parents=True, exist_ok=True)
    with mlflow_run(run, context, held, folder) as logger:
        job = Job(run, context, held, data, folder, logger, progress)
        checksums = check_teachers(run, context.store, folder)
        if untuned := find_untuned(run, context, checksums):
            tags = run_tags(run, context.code, context.group)
            result = copy_results(context.store, logger, untuned, run.spec, tags)
        else:
            result = train_and_record(job, checksums, student_passes)
    shutil.rmtree(folder)
    return result


def train_and_record(job: Job, teacher_sha256: dict[str, str], student_passes: float) -> str:
    """Carry out the steps of a run; return the accuracies that its last line shows, in percent."""
    description = patiently(lambda: describe_run(job, teacher_sha256))
    state, cost = train(job)
    # 0 where no step could be timed.
    if student_passes:
        cost[metrics.STUDENT_PASSES] = student_passes
    evaluations = evaluate(job)
    warn_of_chance(job, evaluations[BEST])
    cost |= network_sizes(job)
    finished = patiently(lambda: build_run_record(job, state, cost, evaluations, description))
    # Numbers of a run that is another process's now would be there twice.
    patiently(job.held.beat)
    job.held.check()
    patiently(lambda: record(job, state, finished))
    best = evaluations[BEST].accuracy
    shown = [f"{name} {100 * best[name]:.1f}" for name in SHOWN_ACCURACIES if name in best]
    return ", ".join(shown)


def find_untuned(run: PlannedRun, context: RunContext, teachers: dict[str, str]) -> Record | None:
    """Return the record of a run with the values of a tuned one, which thus need not be trained.

    Its teachers must have had the checkpoints with these sha256. None for a run that is not tuned,
    is forced or has begun to train.
    """
    folder, spec = work_folder(context.root, run.spec), run.spec
    if not spec.tuned or (folder / REPEAT_MARK).exists() or (folder / STATE).exists():
        return None
    path = context.store.records / dataclasses.replace(spec, tuned=0).record_name
    try:
        untuned = read_record(path)
    except RecordError:
        return None
    return untuned if untuned.teacher_sha256 == teachers else None


def mark_for_repeat(run: PlannedRun, context: RunContext) -> None:
    """Delete a run's unfinished work and mark it to be repeated, until it is recorded."""
    folder = work_folder(context.root, run.spec)
    held = context.claims(run).take(run.spec.id)
    # One that another process has is being carried out.
    if held:
        with held:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            recorded = context.store.find_run(run.spec, FINISHED)
            (folder / REPEAT_MARK).write_text(recorded.info.run_id if recorded else "")


def is_recorded(run: PlannedRun, context: RunContext) -> bool:
    """Return whether the run is finished in the tracking store and is not marked for repeat."""
    return find_recorded(run, context) is not None


def find_recorded(run: PlannedRun, context: RunContext) -> Run | None:
    """Return the finished run of the tracking store that is not marked for repeat, if any."""
    recorded = context.store.find_run(run.spec, FINISHED)
    return recorded if recorded and not is_marked(run, context, recorded.info.run_id) else None


def is_marked(run: PlannedRun, context: RunContext, run_id: str) -> bool:
    """Return whether the finished run with this id is to be repeated here."""
    mark = work_folder(context.root, run.spec) / REPEAT_MARK
    # A mark is for the run that was finished then, and does not outlive the next one.
    return mark.exists() and mark.read_text() == run_id


def clear_work(run: PlannedRun, context: RunContext) -> None:
    """Finish what a run that is recorded left to do, if its process was killed then."""
    folder = work_folder(context.root, run.spec)
    if folder.exists() and (held := context.claims(run).take(run.spec.id)):
        with held:
            if recorded := find_recorded(run, context):
                context.store.mark_replaced(run.spec, recorded.info.run_id)
                shutil.rmtree(folder)


@contextmanager
def mlflow_run(
    run: PlannedRun, context: RunContext, held: HeldClaim, folder: Path
) -> Iterator[RunLogger]:
    """Open the MLflow run of a run; its final status tells how the block ended."""
    fresh = not (folder / STATE).exists()
    tags = run_tags(run, context.code, context.group)
    logger = patiently(lambda: context.store.start_run(run.spec, tags, fresh))
    try:
        yield logger
        patiently(lambda: logger.finish(FINISHED, logger.final_note))
        patiently(lambda: context.store.mark_replaced(run.spec, logger.run_id))
    except LostClaimError:
        # The MLflow run is the other process's now.
        raise
    except GridStopError as error:
        logger.finish(KILLED, one_line(error))
        raise
    except (KeyboardInterrupt, SystemExit):
        logger.finish(KILLED, "interrupted")
        raise
    except Exception as error:
        logger.finish(FAILED, one_line(error))
        if isinstance(error, BenchError):
            raise
        with suppress(Exception):
            logger.log_text(Artifact.TRACEBACK, traceback.format_exc())
        raise BenchError(f"{type(error).__name__}: {one_line(error)}") from error


def describe_run(job: Job, teacher_sha256: dict[str, str]) -> dict[str, object]:
    """Log machine, data and teachers of a run; return machine and data."""
    logger, spec = job.logger, job.run.spec
    description = environment.describe_environment(job.context.device) | describe_data(job.data)
    logger.log_text(Artifact.ENVIRONMENT, json.dumps(description, indent=2))
    if teacher_sha256:
        logger.set_tags({Tag.TEACHER_SHA256: json.dumps(teacher_sha256)})
    with logger.optional_step("inputs"):
        links.log_inputs(logger, spec, job.data)
    return description


def train(job: Job) -> tuple[State, dict[str, float]]:
    """Train the run and log its epochs; return the last state and the costs.

    Its checkpoints lie in the job's folder.
    """
    run, context = job.run, job.context
    if context.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(context.device)
    # The other processes wait in follow_leader.
    context.group.send((run, job.folder))
    module = build_training_module(run, context, job.data)
    data = job.data.to(context.device)
    trainer = Trainer(module, data, run.spec, job.folder, context.group)

    def log_epoch(row: dict[str, float], epoch: int) -> None:
        # A run that continues gives its earlier epochs again.
        if epoch > job.logger.last_epoch:
            job.progress.end_epoch(row)
        job.logger.log_epoch(epoch_metrics(row), epoch)

    try:
        state = trainer.fit(log_epoch, job.tick)
    except BenchError:
        raise
    except Exception as error:
        if context.group.size == 1:
            raise
        # A BenchError stops all processes alike; after any other the rest would wait for ever.
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    path = ", ".join(trainer.training_path) or "as written"
    job.progress.log(f"training path: {path}", logging.DEBUG)
    patiently(job.logger.send_epochs)
    patiently(lambda: job.logger.set_tags({Tag.TRAINING_PATH: path}))
    peak = environment.peak_memory(context.device)
    return state, {metrics.TRAIN_SECONDS: state.seconds, metrics.PEAK_BYTES: peak}


def epoch_metrics(row: dict[str, float]) -> dict[str, float]:
    """Return the metrics of an epoch with the loss: the one curve that all methods have."""
    loss = sum(value for name, value in row.items() if name.startswith(metrics.TRAIN))
    return {metrics.TRAIN_LOSS: loss, **row}


def evaluate(job: Job) -> dict[str, CheckpointEvaluation]:
    """Attack every checkpoint of the run on the test images."""
    spec = job.run.spec
    evaluations = {}
    for name in CHECKPOINTS:
        path = job.folder / f"{name}.pt"
        if not path.exists():
            continue
        net = checkpoint.load(path, spec.arch, job.data.info).to(job.context.device)
        verdicts = job.folder / f"verdicts_{name}"
        job.progress.checkpoint = name
        evaluations[name] = evaluate_checkpoint(
            net, spec, name, job.data.test, verdicts, job.tick, job.context.search
        )
    search, precision = job.context.search
    text = search if search == "exact" else f"{search}, {precision}"
    patiently(lambda: job.logger.set_tags({Tag.ATTACK_SEARCH: text}))
    return evaluations


def warn_of_chance(job: Job, best: CheckpointEvaluation) -> None:
    """Warn of a network that learned nothing, as far as its test images tell."""
    correct = best.predictions == job.data.test.y
    if len(correct) >= MIN_TEST_IMAGES and is_by_chance(correct, job.data.info.num_classes):
        measured = f"{percent_true(correct):.1f} % of {len(correct):,} test images"
        job.progress.log(
            f"warning: {job.run.label} learned nothing: it classifies {measured} correctly,"
            " no more than by chance",
            logging.WARNING,
        )


def record(job: Job, state: State, finished: Record) -> None:
    """Record a run: files, then numbers in MLflow and as a file; keep a teacher."""
    run, context, logger, folder = job.run, job.context, job.logger, job.folder
    spec, model = run.spec, None
    with logger.optional_step("model"):
        model = links.log_checkpoint(logger, spec, run_tags(run, context.code, context.group))
    for name in finished.checksums:
        logger.log_file(folder / f"{name}.pt", Artifact.CHECKPOINTS)
    for verdicts in sorted(folder.glob("verdicts_*.npz")):
        logger.log_file(verdicts, Artifact.VERDICTS)
    logger.log_record(finished, links.metric_link(model, job.data, finished.metrics_of(BEST)))
    if spec.role == "teacher":
        card = cards.trained_card(spec, finished.checksums[BEST])
        cards.add_teacher(context.root, folder / "best.pt", card)
    add_note_and_links(job, model, state, finished)
    # The file comes last: whoever reads it sees a complete run in MLflow.
    context.store.save_record(finished)


def network_sizes(job: Job) -> dict[str, float]:
    """Return parameters and multiply-adds of the student and of its robust teacher, if any."""
    spec, teacher = job.run.spec, ""
    if identity := spec.teachers.get("robust"):
        teacher = cards.find_card(job.context.root, identity, spec.dataset).arch
    return size_metrics(spec.arch, teacher, spec.dataset)


def build_run_record(
    job: Job,
    state: State,
    cost: dict[str, float],
    evaluations: dict[str, CheckpointEvaluation],
    description: dict[str, object],
) -> Record:
    """Return the record of a run that was trained and evaluated."""
    run, context, best = job.run, job.context, evaluations[BEST]
    total, values = Counter(cost), dict[str, float]()
    for name, evaluation in evaluations.items():
        values |= evaluation.metrics(name)
        total.update(evaluation.cost)
    stored = job.logger.client.get_run(job.logger.run_id)
    tags = run_tags(run, context.code, context.group) | stored.data.tags
    tags |= {Tag.FLAGS: json.dumps(best.flags), Tag.STATUS_NOTE: ""}
    checksums = {name: sha256_of_file(job.folder / f"{name}.pt") for name in evaluations}
    return build_record(
        spec_id=run.spec.id,
        run_id=job.logger.run_id,
        start_time=stored.info.start_time,
        spec=json.loads(run.spec.json()),
        tags={tag: tags[tag] for tag in RECORD_TAGS if tag in tags},
        checksums=checksums,
        metrics=finite_values({**values, **total}),
        curves=build_curves(state.history),
        environment=description,
        labels=job.data.test.y.numpy(),
        predictions=best.predictions.numpy(),
        survived=None if best.survived is None else best.survived.numpy(),
    )


def finite_values(values: dict[str, float]) -> dict[str, float]:
    """Return the values that are finite; MLflow has the others as tags."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def build_curves(history: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """Return (epoch, value) of each metric of the epochs that is finite."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in history:
        for name, value in finite_values(epoch_metrics(row)).items():
            if metrics.is_curve(name):
                curves.setdefault(name, []).append((int(row["epoch"]), value))
    return curves


def add_note_and_links(job: Job, model: LoggedModel | None, state: State, finished: Record) -> None:
    """Add note, figures, and a version in the registry if one is due, to a complete run."""
    run, context, logger = job.run, job.context, job.logger
    metric = metrics.VAL_ROBUST if run.method.adversarial else metrics.VAL_CLEAN
    chosen = next(row for row in state.history if row.get(metric) == state.best)
    epoch = int(chosen["epoch"])
    with logger.optional_step("note"):
        logger.set_tags({note.NOTE_TAG: note.run_note(finished, epoch)})
    with logger.optional_step("figures"):
        note.draw_figures(finished, epoch, job.folder / Artifact.FIGURES)
        logger.log_folder(job.folder / Artifact.FIGURES)
    if model:
        with logger.optional_step("alias"):
            links.register_model(
                context.store, logger, model, run.spec, run.identity,
                chosen[metrics.VAL_ROBUST], partial(log_best_network, job))  # fmt: skip


def log_best_network(job: Job) -> None:
    """Log the best checkpoint once more, as MLflow loads it."""
    info = job.data.info
    net = checkpoint.load(job.folder / "best.pt", job.run.spec.arch, info)
    links.log_network(job.logger, net, info.shape, job.folder / Artifact.MODEL)


def build_training_module(run: PlannedRun, context: RunContext, data: Data) -> TrainingModule:
    """Return student, teachers and parts on the device. The seed alone decides initial weights."""
    spec = run.spec
    frozen = {}
    for role, identity in spec.teachers.items():
        card = cards.find_card(context.root, identity, spec.dataset)
        frozen[role] = cards.load_teacher(context.root, card, data.info).to(context.device)
    torch.manual_seed(derive_seed("init", spec.seed))
    student = models.build(spec.arch, data.info).to(context.device)
    if not spec.training.normalise:
        student.see_raw_pixels()
    module = TrainingModule(run.method, student, frozen, len(data.train))
    return module.to(context.device)


def run_tags(
    run: PlannedRun, code: dict[str, str], group: ProcessGroup = SINGLE_PROCESS
) -> dict[str, str]:
    """Return the tags by which people and leaderboards find a run."""
    spec = run.spec
    return spec.identity_tags | {
        "suite": spec.suite,
        Tag.VARIANT: run.variant,
        Tag.SETS: ",".join(run.variant_fields),
        Tag.COMMAND: group.command_line(run.command),
        **code,
    }


def describe_data(data: Data) -> dict[str, object]:
    """Return facts, sizes and checksum of the data as used."""
    sizes = {"num_train": len(data.train), "num_val": len(data.val), "num_test": len(data.test)}
    return {"data": {**dataclasses.asdict(data.info), **sizes, "sha256": data.sha256}}
