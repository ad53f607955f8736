"""The students of a suite, data set, model and seed, on each other's adversarial examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bench.analysis.job import (
    EXAMPLES,
    AnalysisContext,
    examples_path,
    load_images,
    save_analysis,
)
from bench.analysis.measures import examples
from bench.analysis.measures.examples import PGD20
from bench.analysis.measures.findings import Findings, GapError
from bench.analysis.measures.transferability import GROUP, Exposure, expose, summarise
from bench.datasets import get
from bench.datasets.augmentation import to_float
from bench.records import trained
from bench.system.errors import BenchError
from bench.system.log import LOGGER
from bench.teachers import cards
from leaderboards.schema.analysis import ANALYSIS, TEACHER_KEY_DIGITS
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.record import Record
from methods.base import Net

# Images that each network of a group is judged on, with the examples of every other one.
MAX_IMAGES = 250


def compare(records: Sequence[Record], context: AnalysisContext, force: bool = False) -> bool:
    """Compare analysed students; return whether there was anything to do.

    A student whose checkpoint is gone stays out, with a line. Raise BenchError where the data or
    the teacher is not here.
    """
    teacher_sha256 = common_teacher(records)
    teacher = teacher_sha256[:TEACHER_KEY_DIGITS]
    networks = load_students(records, context)
    present = [record for record in records if record.spec_id in networks]
    names = {*networks, teacher} - {""}
    if not present or (not force and all(is_compared(record, names) for record in present)):
        return False
    if teacher:
        networks[teacher] = load_teacher(teacher_sha256, present[0], context)
    exposures = expose_all(present, networks, context)
    for record in present:
        if exposure := exposures.get(record.spec_id):
            role = teacher if teacher in exposures else ""
            findings = summarise(record.spec_id, role, exposures)
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
    """Write how a student fares among the others into its record."""
    assert record.analysis
    gaps = {name: text for name, text in record.analysis.gaps.items() if name != GROUP}
    against = {name: round(share, 4) for name, share in exposure.accuracy.items()}
    kept = record.analysis.model_copy(update={"against": against, "gaps": gaps | findings.gaps})
    old = {name: value for name, value in record.metrics.items() if name.startswith(ANALYSIS)}
    save_analysis(context.store, record, old | findings.numbers, kept)


def is_compared(record: Record, names: set[str]) -> bool:
    """Return whether a record has its accuracy on the examples of all these networks."""
    return record.analysis is not None and record.analysis.against.keys() == names


def common_teacher(records: Sequence[Record]) -> str:
    """Return the sha256 of the teacher that most students are compared with, "" for none."""
    checksums = [record.analysis.teacher_sha256 for record in records if record.analysis]
    present = [*filter(None, checksums)]
    return max(sorted(set(present)), key=present.count, default="")


def expose_all(
    records: Sequence[Record], networks: Mapping[str, Net], context: AnalysisContext
) -> dict[str, Exposure]:
    """Return how each network fares on the examples of all.

    A network that has none, for want of a gradient say, stays out, with a line.
    """
    data = load_images(records[0], context)
    x = to_float(data.test.x[:MAX_IMAGES]).to(context.device)
    y = data.test.y[:MAX_IMAGES].to(context.device)
    kept = {record.spec_id: examples_path(context.store, record) for record in records}
    spec, adv = records[0].spec, dict[str, Tensor]()
    for name, net in networks.items():
        path = kept.get(name)
        if path and path.is_file():
            adv[name] = torch.load(path, weights_only=True)[EXAMPLES][: len(x)].to(context.device)
            continue
        try:
            adv[name] = examples.make_examples(net, x, y, PGD20, spec.eps, spec.norm)
        except GapError as error:
            LOGGER.warning(f"{name} has no adversarial examples: {error}")
    return {name: expose(networks[name], x, y, adv) for name in adv}


def load_teacher(sha256: str, record: Record, context: AnalysisContext) -> Net:
    """Load the teacher whose checkpoint has this sha256. Raise BenchError where it is gone."""
    root, spec = context.store.root, record.spec
    for card in cards.read_cards(root):
        if card.sha256 == sha256 and card.dataset == spec.dataset:
            return cards.load_teacher(root, card, get(spec.dataset)).to(context.device)
    raise BenchError(f"the teacher {sha256[:16]}... is not in the store")
