"""What records of earlier versions lack, taken from data set and architectures."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bench.datasets.files.fetching import is_missing
from bench.execution.inputs import cached_loader
from bench.models import check_stated
from bench.models.size import size_metrics
from bench.system.errors import UsageError
from leaderboards.schema.packing import Classes
from leaderboards.schema.record import Record, copy_record, pack_images


def complete_record(record: Record, data_root: Path) -> Record:
    """Return a record of the current version: with the sizes of its networks and with labels.

    Labels only if the data is here and the same. Predictions cannot be had any more.
    """
    if record.classes is not None:
        return record
    labels = test_labels(record, data_root)
    classes = None if labels is None else pack_images(labels)
    return copy_record(record, classes=classes, metrics=record.metrics | network_sizes(record))


def network_sizes(record: Record) -> dict[str, float]:
    """Return the sizes of a record's networks, {} for those of functions or of other versions."""
    spec = record.spec
    # ARCH-METHOD-DIGEST of a teacher that was trained, not imported.
    teacher = spec.teachers.get("robust", "").rsplit("-", 2)[0]
    with suppress(UsageError):
        for arch in filter(None, (spec.arch, teacher)):
            check_stated(arch, "it")
        return size_metrics(spec.arch, teacher, spec.dataset)
    return {}


def test_labels(record: Record, data_root: Path) -> Classes | None:
    """Return the (images,) classes of a record's test images, None without its data."""
    stated = record.environment.get("data")
    # This version may not have the data set.
    with suppress(UsageError):
        if isinstance(stated, dict) and not is_missing(record.spec.dataset, data_root):
            data = cached_loader(data_root)(record.spec)
            if stated.get("sha256") == data.sha256:
                labels: Classes = data.test.y.numpy()
                return labels
    return None
