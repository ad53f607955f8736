"""Records of the repository with an invented analysis: plausible numbers, gaps, and runs without.

python tests/analysed.py FOLDER     # records to look at the pages with
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from leaderboards.read.records import read_record
from leaderboards.schema import analysis
from leaderboards.schema.analysis import measure_name, task_name
from leaderboards.schema.metrics import CLEAN, RANK_METRIC
from leaderboards.schema.record import Record, copy_record

RESULTS = Path(__file__).parent.parent / "leaderboards" / "results"
WITHOUT = "kd"  # runs of this method were not analysed
WITHOUT_TEACHER = "mart"  # and of this one the teacher was gone
SHA256 = "0" * 64
CLASSES = 10


def write_analysed(folder: Path, paths: Iterable[Path] = ()) -> Path:
    """Write records with an analysis, by default of all results of the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [*map(read_record, paths or sorted(RESULTS.glob("*.json")))]
    tasks = defaultdict(list)
    for record in records:
        tasks[record.spec.suite, record.spec.dataset].append(record)
    for members in tasks.values():
        for record in members:
            (folder / record.spec.record_name).write_text(analyse(record, members).to_json())
    return folder


def analyse(record: Record, others: Iterable[Record]) -> Record:
    """Return the record with invented measures; others: whose adversarial examples it meets."""
    # Some have an analysis of their own.
    plain = {n: value for n, value in record.metrics.items() if not n.startswith("analysis/")}
    record = copy_record(record, metrics=plain, analysis=None)
    if record.spec.method == WITHOUT or record.spec.role == "teacher":
        return record
    rng = np.random.default_rng(int(record.spec_id[:8], 16))
    robust = record.metrics[RANK_METRIC]
    has_teacher = record.spec.method != WITHOUT_TEACHER
    numbers = _own_numbers(rng, robust, record.metrics[CLEAN])
    if has_teacher:
        numbers |= _compared_numbers(rng, robust)
    content: dict[str, Any] = {
        "version": 1,
        "images": 360,
        "teacher_sha256": SHA256 if has_teacher else "",
        "its_own": bool(record.spec.teachers),
        "matrices": _matrices(rng, has_teacher),
        "lines": _lines(rng, record.metrics[CLEAN], robust),
        "points": {f"{analysis.TSNE}/{view}": _points(rng) for view in analysis.VIEWS},
        "against": _against(rng, record, others),
        "gaps": {} if has_teacher else {"structure": "no teacher: its checkpoint is gone"},
    }
    metrics = record.metrics | {name: float(value) for name, value in numbers.items()}
    return copy_record(record, metrics=metrics, analysis=content)


def _own_numbers(rng: np.random.Generator, robust: float, clean: float) -> dict[str, float]:
    def noisy(value: float) -> float:
        return float(np.clip(value + rng.normal(0, 0.03), 0, 1))

    numbers = {}
    for attack, share in analysis.FEATURE_ATTACKS.items():
        numbers[measure_name("features", "cosine", attack)] = noisy(1 - share * (0.9 - robust))
        numbers[measure_name("features", "distance", attack)] = noisy(share * (0.9 - robust))
    for view, accuracy in (("clean", clean), ("adv", robust)):
        numbers[measure_name("features", "scatter", view)] = 3 * noisy(accuracy)
        numbers[measure_name("features", "class_mean", view)] = noisy(accuracy)
    for view in analysis.VIEWS:
        numbers[measure_name("gradients", "sparsity", view)] = noisy(0.4)
    numbers[measure_name("gradients", "attack_rise")] = 4 * noisy(1 - robust)
    numbers[measure_name("gradients", "random_rise")] = float(rng.normal(0, 0.02))
    numbers[measure_name("gradients", "area")] = noisy(robust)
    for mode in analysis.TASK_MODES:
        numbers[task_name("digits-5-9", mode, "clean")] = noisy(0.9)
        numbers[task_name("digits-5-9", mode, "pgd20")] = noisy(robust)
    for name in ("resists", "fools", "resists_teacher", "fools_teacher"):
        numbers[measure_name("transferability", name)] = noisy(robust)
    return numbers


def _compared_numbers(rng: np.random.Generator, robust: float) -> dict[str, float]:
    numbers = {}
    for view in analysis.VIEWS:
        for layer in ("stage1", "stage2", "stage3", analysis.PENULTIMATE):
            cka = float(np.clip(0.3 + robust / 2 + rng.normal(0, 0.05), 0, 1))
            numbers[measure_name("structure", "cka", layer, view)] = cka
            numbers[measure_name("structure", "procrustes", layer, view)] = 1 - cka
        numbers[measure_name("structure", "correlation_gap", view)] = rng.uniform(0.05, 0.3)
        numbers[measure_name("structure", "prediction_agreement", view)] = rng.uniform(0.4, 0.9)
        numbers[measure_name("gradients", "cosine", view)] = rng.uniform(0.1, 0.6)
        numbers[measure_name("gradients", "distance", view)] = rng.uniform(0.3, 0.8)
        numbers[measure_name("structure", "error_agreement", view)] = rng.uniform(-0.05, 0.6)
    return numbers


def _matrices(rng: np.random.Generator, has_teacher: bool) -> dict[str, list[list[float]]]:
    matrices = {}
    for view in analysis.VIEWS:
        for network in ("student", "teacher") if has_teacher else ("student",):
            correlations = np.corrcoef(rng.normal(size=(CLASSES, 8))).round(4)
            matrices[f"{analysis.CORRELATION}/{network}/{view}"] = correlations.tolist()
    return matrices


def _lines(
    rng: np.random.Generator, clean: float, robust: float
) -> dict[str, list[tuple[float, float]]]:
    shares = np.linspace(0, 2, 9)
    falling = clean * np.exp(-shares * np.log(clean / max(robust, 0.01)))
    steps = (1, 2, 5, 10, 20, 50)
    return {
        analysis.BY_EPS: [*zip(shares.tolist(), falling.tolist(), strict=True)],
        analysis.BY_STEPS: [(step, float(robust + 0.2 / step)) for step in steps],
        analysis.LOSS_ATTACK: [(x, float(0.3 + 2 * x * (1 - robust))) for x in shares.tolist()],
        analysis.LOSS_RANDOM: [(x, float(0.3 + 0.05 * x * rng.random())) for x in shares.tolist()],
    }


def _points(rng: np.random.Generator, images: int = 360) -> list[tuple[float, float, int]]:
    angles = 2 * np.pi * np.arange(CLASSES) / CLASSES
    points = []
    for image in range(images):
        label = image % CLASSES
        x, y = 30 * np.cos(angles[label]), 30 * np.sin(angles[label])
        noise = rng.normal(0, 6, size=2)
        points.append((round(x + noise[0], 2), round(y + noise[1], 2), label))
    return points


def _against(
    rng: np.random.Generator, record: Record, others: Iterable[Record]
) -> dict[str, float]:
    accuracies = {}
    for other in others:
        if (other.spec.arch, other.spec.seed) == (record.spec.arch, record.spec.seed):
            robust = record.metrics[RANK_METRIC]
            accuracies[other.spec_id] = float(np.clip(robust + rng.uniform(0, 0.2), 0, 1))
    accuracies[SHA256[: analysis.TEACHER_KEY_DIGITS]] = record.metrics[RANK_METRIC]
    return accuracies


if __name__ == "__main__":
    write_analysed(Path(sys.argv[1]))
