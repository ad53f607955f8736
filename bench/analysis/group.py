"""The students of a suite, data set, model and seed, on each other's adversarial examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.analysis.job import (
    EXAMPLES,
    AnalysisContext,
    examples_path,
    load_images,
    locked_run,
    open_lock,
    read_current,
    save_analysis,
)
from bench.analysis.measures import examples
from bench.analysis.measures.examples import PGD20
from bench.analysis.measures.findings import Findings, GapError
from bench.analysis.measures.transferability import GROUP, Exposure, expose, summarise
from bench.datasets import get
from bench.datasets.augmentation import to_float
from bench.records import trained
from bench.system.errors import BenchError, one_line
from bench.system.log import LOGGER
from bench.teachers import cards
from leaderboards.schema.analysis import ANALYSIS, TEACHER_KEY_DIGITS
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.record import Record
from methods.base import Net

# Images that each network of a group is judged on, with the examples of every other one.
MAX_IMAGES = 250


def compare(records: Sequence[Record], context: AnalysisContext, force: bool = False) -> bool:
    """Compare analysed students and their teachers; return whether there was anything to do.

    A network whose checkpoint is gone stays out, with a line. Of two processes that would compare
    students of a store the second waits for the first. Raise BenchError where the data is not here.
    """
    with open_lock(context.store, "groups"):
        # Read again: the first process may have compared them.
        records = [read_current(record, context.store) for record in records]
        students = load_students(records, context)
        present = [record for record in records if record.spec_id in students]
        teachers = load_teachers(present, context)
        names = {*students, *teachers}
        if not present or (not force and all(is_compared(record, names) for record in present)):
            return False
        exposures = expose_all(present, students | teachers, context)
        for record in present:
            if exposure := exposures.get(record.spec_id):
                teacher = teacher_key(record) if teacher_key(record) in exposures else ""
                findings = summarise(record.spec_id, teacher, exposures, teachers)
                save_comparison(record, exposure, findings, context)
    return True


def load_students(records: Sequence[Record], context: AnalysisContext) -> dict[str, Net]:
    """Return the networks of students by their specs' ids."""
    networks = {}
    for record in records:
        try:
            net = trained.load_network(record, context.store.root, BEST)
            networks[record.spec_id] = net.to(context.device)
        except BenchError as error:
            LOGGER.warning(f"{record.spec.label} is not compared with the others: {error}")
    return networks


def save_comparison(
    record: Record, exposure: Exposure, findings: Findings, context: AnalysisContext
) -> None:
    """Write how a student fares among the others into its record as it is now.

    A run that another process is analysing stays as it is, with a line: its analysis comes anew,
    and with it the comparison.
    """
    try:
        with locked_run(record, context.store):
            add_comparison(read_current(record, context.store), exposure, findings, context)
    except BenchError as error:
        LOGGER.warning(f"{record.spec.label}: its comparison is not kept: {error}")


def add_comparison(
    record: Record, exposure: Exposure, findings: Findings, context: AnalysisContext
) -> None:
    """Write a record with a comparison in place of the one that it has."""
    assert record.analysis
    gaps = {name: text for name, text in record.analysis.gaps.items() if not is_of_group(name)}
    against = {name: round(share, 4) for name, share in exposure.accuracy.items()}
    kept = record.analysis.model_copy(update={"against": against, "gaps": gaps | findings.gaps})
    old = {
        name: value
        for name, value in record.metrics.items()
        if name.startswith(ANALYSIS) and not is_of_group(name.removeprefix(ANALYSIS))
    }
    save_analysis(context.store, record, old | findings.numbers, kept)


def is_of_group(name: str) -> bool:
    """Return whether a measure or gap is about the others' examples."""
    return name.partition("/")[0] == GROUP


def is_compared(record: Record, names: set[str]) -> bool:
    """Return whether a record has its accuracy on the examples of all these networks."""
    return record.analysis is not None and record.analysis.against.keys() == names


def teacher_key(record: Record) -> str:
    """Return the key of the teacher that a student is compared with, "" for none."""
    return record.analysis.teacher_sha256[:TEACHER_KEY_DIGITS] if record.analysis else ""


def expose_all(
    records: Sequence[Record], networks: Mapping[str, Net], context: AnalysisContext
) -> dict[str, Exposure]:
    """Return how each network fares on the examples of all.

    A network that has none, for want of a gradient say, stays out, with a line, as does one that
    others' examples give logits that are not finite.
    """
    data = load_images(records[0], context)
    x = to_float(data.test.x[:MAX_IMAGES]).to(context.device)
    y = data.test.y[:MAX_IMAGES].to(context.device)
    kept = {record.spec_id: examples_path(context.store, record) for record in records}
    spec, adv = records[0].spec, dict[str, Tensor]()
    for name, net in networks.items():
        stored = read_examples(kept[name], x) if name in kept else None
        if stored is not None:
            adv[name] = stored
            continue
        try:
            adv[name] = examples.make_examples(net, x, y, PGD20, spec.eps, spec.norm)
        except GapError as error:
            LOGGER.warning(f"{name} has no adversarial examples: {error}")
    exposures = {}
    for name in adv:
        try:
            exposures[name] = expose(networks[name], x, y, adv)
        except GapError as error:
            LOGGER.warning(f"{name} is not compared with the others: {error}")
    return exposures


def read_examples(path: Path, x: Tensor) -> Tensor | None:
    """Return the examples that a file keeps of images; None for no file, or one that is damaged."""
    if not path.is_file():
        return None
    try:
        adv: Tensor = torch.load(path, weights_only=True)[EXAMPLES][: len(x)].to(x.device)
    # Of a damaged file torch raises anything.
    except Exception as error:
        LOGGER.warning(f"{str(path)!r} is made again: {one_line(error)}")
        return None
    return adv if adv.shape == x.shape else None


def load_teachers(records: Sequence[Record], context: AnalysisContext) -> dict[str, Net]:
    """Return the teachers that students are compared with, by their keys."""
    networks = {}
    for record in records:
        key = teacher_key(record)
        if not key or key in networks:
            continue
        assert record.analysis
        try:
            networks[key] = load_teacher(record.analysis.teacher_sha256, record, context)
        except BenchError as error:
            LOGGER.warning(f"{record.spec.label} is not compared with its teacher: {error}")
    return networks


def load_teacher(sha256: str, record: Record, context: AnalysisContext) -> Net:
    """Load the teacher whose checkpoint has this sha256. Raise BenchError where it is gone."""
    root, spec = context.store.root, record.spec
    for card in cards.read_cards(root):
        if card.sha256 == sha256 and card.dataset == spec.dataset:
            return cards.load_teacher(root, card, get(spec.dataset)).to(context.device)
    raise BenchError(f"the teacher {sha256[:16]}... is not in the store")
