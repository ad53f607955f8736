"""The analysis of one finished run: its networks and images, the measures, its record."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from bench.analysis import figures
from bench.analysis.measures import (
    examples,
    gradients,
    loss_surface,
    other_tasks,
    robust_features,
    structure,
)
from bench.analysis.measures.findings import Findings, GapError
from bench.analysis.measures.subject import Subject
from bench.datasets.augmentation import to_float
from bench.datasets.splits import Data
from bench.execution.inputs import cached_loader
from bench.models import check_stated, checkpoint
from bench.records import trained
from bench.system.errors import BenchError
from bench.teachers import cards
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import TrackingStore
from leaderboards.read.records import read_record
from leaderboards.schema import analysis
from leaderboards.schema.analysis import (
    ADVERSARIAL,
    ANALYSIS,
    PENULTIMATE,
    Analysis,
    measure_name,
)
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.fields import Artifact
from leaderboards.schema.record import Record, RecordError, copy_record
from methods.base import Net

# Images of a split: more would not change a mean by what matters, and take their time.
MAX_TEST, MAX_TRAIN = 500, 2_000
EXAMPLES = "examples"  # key of a file of them
# Digits after the point that a record keeps of matrices and lines, and of points.
DECIMALS, OF_POINTS = 4, 2
MEASURES: tuple[tuple[str, Callable[[Subject], Findings]], ...] = (
    ("structure", structure.measure),
    ("features", robust_features.measure),
    ("gradients", gradients.measure),
    ("gradients/surface", loss_surface.measure),
)
# On adversarial examples, as the pages show them first.
SHOWN = {
    "CKA": measure_name("structure", "cka", PENULTIMATE, ADVERSARIAL),
    "feature cosine": measure_name("features", "cosine", "pgd20"),
    "gradient cosine": measure_name("gradients", "cosine", ADVERSARIAL),
}


@dataclass(frozen=True)
class Comparison:
    """The teacher that a student is compared with, "" for none.

    sha256: of the checkpoint that taught it, "" if it had no teacher.
    """

    identity: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class AnalysisContext:
    """Where runs and their data are, and on which device they are analysed."""

    store: TrackingStore
    data_root: Path
    device: torch.device


def analyze_run(record: Record, comparison: Comparison, context: AnalysisContext) -> str:
    """Analyse a finished run and write its record anew; return a line with some of its numbers.

    Raise BenchError where its checkpoint or its data are not here.
    """
    with locked_run(record, context.store):
        before, record = record, read_current(record, context.store)
        if is_analysed(record) and not is_analysed(before):
            return "another process has analysed it meanwhile"
        subject, teacher_sha256, gaps = load_subject(record, comparison, context)
        findings = measure_all(subject)
        findings.gaps |= gaps
        findings.update(measure_tasks(record, subject, context))
        save_examples(context.store, record, subject)
        kept = build_analysis(findings, len(subject.y), teacher_sha256, comparison)
        log_figures(context.store, save_analysis(context.store, record, findings.numbers, kept))
    shown = [(name, findings.numbers.get(metric)) for name, metric in SHOWN.items()]
    texts = [f"{name} {value:.3f}" for name, value in shown if value is not None]
    return f"under attack: {', '.join(texts)}" if texts else "analysed"


def is_analysed(record: Record) -> bool:
    """Return whether a record holds an analysis of the current version."""
    return record.analysis is not None and record.analysis.version == analysis.VERSION


@contextmanager
def locked_run(record: Record, store: TrackingStore) -> Iterator[None]:
    """Lock the analysis of a run. Raise BenchError if another process has it."""
    lock = open_lock(store, record.spec_id)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BenchError("another process is working on it") from error
    try:
        yield
    finally:
        lock.release()


def open_lock(store: TrackingStore, name: str) -> FileLock:
    """Return a lock of the analysis of a store, not taken yet."""
    folder = store.root / Artifact.ANALYSIS
    folder.mkdir(exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def read_current(record: Record, store: TrackingStore) -> Record:
    """Return a run's record as it is now: other processes write it too.

    Raise BenchError if it cannot be read, or if the run was trained again.
    """
    path = store.records / record.spec.record_name
    if not path.exists():
        # It was read from a file of another name.
        return record
    try:
        current = read_record(path)
    except RecordError as error:
        raise BenchError(f"its record cannot be read: {error}") from error
    if (current.run_id, current.checksums) != (record.run_id, record.checksums):
        raise BenchError("it was trained again meanwhile")
    return current


def load_subject(
    record: Record, comparison: Comparison, context: AnalysisContext
) -> tuple[Subject, str, dict[str, str]]:
    """Return networks and images, the sha256 of the teacher's checkpoint, gaps without a teacher.

    Raise BenchError where the student's checkpoint or its data are not here.
    """
    spec, device = record.spec, context.device
    check_stated(spec.arch, "its network")
    student = trained.load_network(record, context.store.root, BEST).to(device)
    data = load_images(record, context)
    teacher, sha256, gaps = None, "", dict[str, str]()
    try:
        teacher, sha256 = load_teacher(comparison, data, context)
    except BenchError as error:
        gaps["structure"] = f"no teacher: {error}"
    test, train = data.test, data.train
    x, y = to_float(test.x[:MAX_TEST]).to(device), test.y[:MAX_TEST].to(device)
    train_x, train_y = to_float(train.x[:MAX_TRAIN]).to(device), train.y[:MAX_TRAIN].to(device)
    subject = Subject(student, teacher, x, y, train_x, train_y, spec.eps, spec.norm)
    return subject, sha256, gaps


def load_images(record: Record, context: AnalysisContext) -> Data:
    """Load the data of a run. Raise BenchError for other data than it was judged on."""
    data = cached_loader(context.data_root)(record.spec)
    stated = record.environment.get("data")
    if not isinstance(stated, dict) or stated.get("sha256") != data.sha256:
        raise BenchError(f"it states other data than those here, {data.sha256[:16]}...")
    return data


def load_teacher(comparison: Comparison, data: Data, context: AnalysisContext) -> tuple[Net, str]:
    """Return the teacher and the sha256 of its checkpoint. Raise BenchError for none."""
    if not comparison.identity:
        raise BenchError("the store has no robust teacher of this suite and data set")
    card = cards.find_card(context.store.root, comparison.identity, data.info.name)
    if comparison.sha256 and comparison.sha256 != card.sha256:
        raise BenchError(f"its checkpoint {comparison.sha256[:16]}... is gone, another is here")
    net = cards.load_teacher(context.store.root, card, data.info)
    return net.to(context.device), card.sha256


def measure_all(subject: Subject) -> Findings:
    """Make the measures; a group that cannot be made is a gap."""
    findings = Findings()
    for group, measure in MEASURES:
        try:
            findings.update(measure(subject))
        except GapError as error:
            findings.gaps[group] = str(error)
    return findings


def measure_tasks(record: Record, subject: Subject, context: AnalysisContext) -> Findings:
    """Put the student to other tasks; those whose data is not here are gaps."""
    spec = record.spec
    try:
        return other_tasks.measure(
            subject.student, spec.dataset, context.data_root, spec.eps, spec.norm
        )
    except (GapError, BenchError) as error:
        return Findings(gaps={"tasks": str(error)})


def examples_path(store: TrackingStore, record: Record) -> Path:
    """Return the file of the adversarial examples of a run's best checkpoint."""
    return store.root / Artifact.ANALYSIS / f"{record.checksums[BEST]}.pt"


def save_examples(store: TrackingStore, record: Record, subject: Subject) -> None:
    """Keep the adversarial examples of a student, on which others are judged, if it has some."""
    with suppress(GapError):
        adv = examples.subject_examples(subject)
        checkpoint.save(examples_path(store, record), {EXAMPLES: adv.cpu()})


def build_analysis(
    findings: Findings, images: int, teacher_sha256: str, comparison: Comparison
) -> Analysis:
    """Return what a record keeps beside the numbers, rounded."""
    matrices = {
        name: [[round(value, DECIMALS) for value in row] for row in rows]
        for name, rows in findings.matrices.items()
    }
    lines = {
        name: [(round(x, DECIMALS), round(y, DECIMALS)) for x, y in pairs]
        for name, pairs in findings.lines.items()
    }
    points = {
        name: [(round(x, OF_POINTS), round(y, OF_POINTS), label) for x, y, label in triples]
        for name, triples in findings.points.items()
    }
    return Analysis(
        version=analysis.VERSION,
        images=images,
        teacher_sha256=teacher_sha256,
        its_own=bool(comparison.sha256),
        matrices=matrices,
        lines=lines,
        points=points,
        gaps=findings.gaps,
    )


def save_analysis(
    store: TrackingStore, record: Record, numbers: dict[str, float], kept: Analysis
) -> Record:
    """Write an analysis into the MLflow run and the record of a run; return the record.

    The file comes last: whoever reads it sees its numbers in MLflow.
    """
    others = {
        name: value for name, value in record.metrics.items() if not name.startswith(ANALYSIS)
    }
    values = {name: float(f"{value:.6g}") for name, value in numbers.items()}
    content = json.loads(kept.model_dump_json())
    updated = copy_record(record, metrics=others | values, analysis=content)
    logger = RunLogger(store.client, record.run_id)
    logger.log_results(values)
    logger.log_record_file(updated)
    store.save_record(updated)
    return updated


def log_figures(store: TrackingStore, record: Record) -> None:
    """Draw the figures of an analysed record among the artifacts of its run."""
    logger = RunLogger(store.client, record.run_id)
    with tempfile.TemporaryDirectory() as name, logger.optional_step("analysis"):
        folder = Path(name, Artifact.ANALYSIS)
        figures.draw(record, folder)
        logger.log_folder(folder)
