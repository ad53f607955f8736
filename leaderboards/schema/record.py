"""A record: one finished run as a small JSON file without tensors.

It holds what a leaderboard needs and what checks it, and nothing twice: tags and parameters that
follow from the spec are derived, and so are the last value of a curve and accuracies by class.
"""

from __future__ import annotations

import json
import math
import re
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import CoreSchema, core_schema

from leaderboards.schema import fields, metrics, packing
from leaderboards.schema.analysis import Analysis
from leaderboards.schema.checkpoints import CHECKPOINTS
from leaderboards.schema.metrics import Curve
from leaderboards.schema.packing import Classes, Verdicts
from leaderboards.schema.spec import Spec

# The version changes with the meaning of a field, or where there is one more. Records of version 1
# have no `classes`, of version 2 no `analysis`.
VERSION = 3
SCHEMA = {"name": "robust-distill-bench/record", "version": VERSION}
METRIC_NAME = re.compile(r"[a-z0-9_@/:. -]+")
# An accuracy was computed in single precision, the mean of its verdicts in double.
ACCURACY_TOLERANCE = 1e-5
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Epoch = Annotated[int, Field(ge=0, lt=2**31)]
# The bootstrap's memory grows with the test images.
Images = Annotated[int, Field(gt=0, le=100_000)]


class RecordError(ValueError):
    """A file or a run makes no record; the message is one line."""


def _curve_schema(source: object, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
    join = core_schema.plain_serializer_function_ser_schema(
        lambda curve: [*zip(*curve, strict=True)]
    )
    points = handler.generate_schema(list[tuple[Epoch, float]])
    return core_schema.no_info_after_validator_function(_split_points, points, serialization=join)


def _split_points(points: list[tuple[int, float]]) -> Curve:
    epochs, values = zip(*points, strict=True) if points else ((), ())
    return epochs, values


# A file has a list of (epoch, value). Millions of pairs in memory would slow Python down.
Points = Annotated[Curve, pydantic.GetPydanticSchema(_curve_schema)]


class StrictModel(BaseModel):
    """All stated fields and no others; numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Schema(StrictModel):
    """The name and version of the format."""

    name: Literal["robust-distill-bench/record"]
    version: Literal[1, 2, 3]


class PackedVerdicts(StrictModel):
    """Verdicts of AutoAttack on the best checkpoint for the first `images` test images.

    survived: base64 of packed bits.
    """

    images: Images
    survived: str

    def unpack(self) -> Verdicts:
        """Return (images,) bool. Raises ValueError for another number of bits."""
        return packing.unpack_verdicts(self.survived, self.images)


class PackedClasses(StrictModel):
    """The class of each test image, and the best checkpoint's prediction on it, unattacked.

    labels, predictions: as `packing.pack_classes` writes them. predictions: None if only the
    verdicts were kept.
    """

    images: Images
    labels: str
    predictions: str | None

    def unpack_labels(self) -> Classes:
        return packing.unpack_classes(self.labels, self.images)

    def unpack_predictions(self) -> Classes | None:
        if self.predictions is None:
            return None
        return packing.unpack_classes(self.predictions, self.images)


class Record(StrictModel):
    """One finished run.

    run_id, start_time (ms): in the store that it is from. checksums: sha256 of checkpoints.
    metrics: results and costs as fractions, seconds or counts. curves: epochs and their values.
    analysis: what `analyze` keeps beside its numbers.
    """

    schema_: Schema = Field(alias="schema")
    spec_id: Hex16
    run_id: Hex32
    start_time: int = Field(ge=0, lt=2**42)
    spec: Spec
    tags: dict[str, str]
    checksums: dict[str, Hex64]
    metrics: dict[str, float]
    curves: dict[str, Points]
    environment: dict[str, Any]
    classes: PackedClasses | None = None
    verdicts: PackedVerdicts | None
    analysis: Analysis | None = None

    @model_validator(mode="after")
    def _check(self) -> Record:
        if self.spec.id != self.spec_id:
            raise ValueError(f"spec_id is {self.spec_id}, the spec's content gives {self.spec.id}")
        if unknown := sorted(self.checksums.keys() - CHECKPOINTS):
            raise ValueError(f"checksums: {unknown[0]!r} is no checkpoint")
        self._check_tags()
        self._check_metrics()
        self._check_curves()
        self._check_verdicts()
        self._check_classes()
        # JSON's 1e400 is read as infinity.
        json.dumps(self.environment, allow_nan=False)
        return self

    def _check_tags(self) -> None:
        for name in sorted(self.tags):
            if name not in fields.RECORD_TAGS:
                raise ValueError(f"tags: {name!r} does not belong there")
        for tag in fields.JSON_TAGS:
            if fields.parse_json_tag(self.tags.get(tag, "")) is None:
                raise ValueError(f"tags.{tag}: not a JSON object of texts")
        address = self.tags.get(fields.Tag.CHECKPOINT_ADDRESS, "")
        if address and not fields.HUB_FILE.fullmatch(address):
            raise ValueError(f"tags.checkpoint_address: {address[:80]!r} is not hf:OWNER/NAME:FILE")

    def _check_metrics(self) -> None:
        for name, value in self.metrics.items():
            is_result = name.startswith(metrics.METRIC_PREFIXES) and METRIC_NAME.fullmatch(name)
            if name in self.curves or not is_result:
                raise ValueError(f"metrics: {name!r} does not belong there")
            if metrics.is_accuracy(name) and not 0 <= value <= 1:
                raise ValueError(f"metrics: {name} = {value} is no accuracy")

    def _check_curves(self) -> None:
        for name, (epochs, _) in self.curves.items():
            if not metrics.is_curve(name) or [*epochs] != sorted(set(epochs)):
                raise ValueError(f"curves: {name!r} is none, or its epochs are not in order")

    def _check_verdicts(self) -> None:
        accuracy = self.metrics.get(metrics.RANK_METRIC)
        if (accuracy is None) != (self.verdicts is None):
            raise ValueError(
                "AutoAttack accuracy and verdicts on single images: there must be both or neither"
            )
        if accuracy is None or self.verdicts is None:
            return
        images = self.verdicts.images
        mean = float(self.verdicts.unpack().mean())
        same_images = self.metrics.get(metrics.NUM_ATTACKED, images) == images
        if abs(mean - accuracy) > ACCURACY_TOLERANCE or not same_images:
            message = f"verdicts: AutoAttack accuracy {mean:.4f} on {images} images"
            raise ValueError(f"{message}, recorded is {accuracy:.4f}")

    def _check_classes(self) -> None:
        if self.classes is None:
            return
        labels, predictions = self.classes.unpack_labels(), self.classes.unpack_predictions()
        images = labels.size
        attacked = self.verdicts.images if self.verdicts else 0
        if self.metrics.get(metrics.NUM_IMAGES, images) != images or attacked > images:
            raise ValueError(f"classes: of {images} images, which others were judged")
        if predictions is None:
            return
        correct = predictions == labels
        accuracy = self.metrics.get(metrics.CLEAN, -1.0)
        if abs(float(correct.mean()) - accuracy) > ACCURACY_TOLERANCE:
            message = f"classes: clean accuracy {correct.mean():.4f}"
            raise ValueError(f"{message}, recorded is {accuracy:.4f}")
        if self.verdicts and (self.survived & ~correct[:attacked]).any():
            raise ValueError("verdicts: an image survived that was classified wrongly before")

    @property
    def survived(self) -> Verdicts:
        """(images,) bool. Raises RecordError without verdicts."""
        if not self.verdicts:
            raise RecordError("no verdicts on single images")
        return self.verdicts.unpack()

    @property
    def flags(self) -> dict[str, str]:
        """The sanity flags, with their evidence."""
        return fields.parse_json_tag(self.tags.get(fields.Tag.FLAGS, "")) or {}

    def metrics_of(self, checkpoint: str) -> dict[str, float]:
        """Return the accuracies and counts of a checkpoint."""
        prefix = metrics.accuracy_name("", checkpoint)
        return {name: value for name, value in self.metrics.items() if name.startswith(prefix)}

    @property
    def accuracies(self) -> dict[str, dict[str, float]]:
        """The accuracies by checkpoint and attack, with `clean` and `worst`."""
        accuracies: dict[str, dict[str, float]] = {}
        for name in CHECKPOINTS:
            for metric, value in self.metrics_of(name).items():
                if metrics.is_accuracy(metric):
                    accuracies.setdefault(name, {})[metric.partition("/")[2]] = value
        return accuracies

    def drop(self, attack: str) -> float:
        """Return the accuracy lost from the best checkpoint to the last; NaN where not measured.

        Under AutoAttack on the images that both were judged on: the last may have seen fewer.
        """
        names = metrics.accuracy_name(attack), metrics.accuracy_name(attack, "last")
        best, last = (self.metrics.get(name, math.nan) for name in names)
        shared = int(self.metrics.get(metrics.accuracy_name("aa_n", "last"), 0))
        if attack == "aa" and self.verdicts and 0 < shared < self.verdicts.images:
            best = float(self.survived[:shared].mean())
        return best - last

    @property
    def teacher_sha256(self) -> dict[str, str]:
        """The checksum of each teacher's checkpoint by role, if recorded."""
        return fields.parse_json_tag(self.tags.get(fields.Tag.TEACHER_SHA256, "")) or {}

    @property
    def training_key(self) -> tuple[str, ...]:
        """The settings that determine a checkpoint; other attacks on it make another spec."""
        spec = self.spec
        return spec.role, spec.dataset, spec.arch, spec.method, str(spec.seed)

    def to_json(self) -> str:
        """Return JSON with a line for each field."""
        content = self.model_dump(by_alias=True) | {"spec": self.spec.values}
        lines = [f" {json.dumps(key)}: {_dump_json(value)}" for key, value in content.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @cached_property
    def accuracies_by_class(self) -> dict[str, dict[int, float]]:
        """The accuracy on each class that has images, clean and under AutoAttack, by metric.

        {} where no labels were kept. A class that AutoAttack did not see has none there.
        """
        if self.classes is None:
            return {}
        labels, predictions = self.classes.unpack_labels(), self.classes.unpack_predictions()
        accuracies = {}
        if predictions is not None:
            accuracies[metrics.CLEAN] = _mean_by_class(labels, predictions == labels)
        if self.verdicts:
            survived = self.survived
            accuracies[metrics.RANK_METRIC] = _mean_by_class(labels[: survived.size], survived)
        return accuracies

    @property
    def class_metrics(self) -> dict[str, float]:
        """The lowest accuracy of a class and the deviation over classes, as far as they follow."""
        names = {
            metrics.RANK_METRIC: (metrics.WORST_CLASS, metrics.CLASS_SPREAD),
            metrics.CLEAN: (metrics.WORST_CLASS_CLEAN, metrics.CLASS_SPREAD_CLEAN),
        }
        values: dict[str, float] = {}
        for metric, by_class in self.accuracies_by_class.items():
            worst, spread = names[metric]
            accuracies = [*by_class.values()]
            values |= {worst: min(accuracies), spread: float(np.std(accuracies))}
        return values


def _mean_by_class(labels: Classes, verdicts: Verdicts) -> dict[int, float]:
    images = np.bincount(labels)
    correct = np.bincount(labels, weights=verdicts)
    return {int(c): float(correct[c] / images[c]) for c in np.flatnonzero(images)}


def build_record(
    *,
    labels: Classes | None = None,
    predictions: Classes | None = None,
    survived: Verdicts | None = None,
    **content: Any,
) -> Record:
    """Return the record with this content, the arrays packed. Raises RecordError where wrong.

    Args:
        labels: (images,) classes of the test images.
        predictions: (images,) of the best checkpoint on the clean ones.
        survived: (attacked images,) bool, under AutoAttack.
        content: the other fields of Record.
    """
    verdicts = classes = None
    if survived is not None:
        verdicts = {"images": survived.size, "survived": packing.pack_verdicts(survived)}
    if labels is not None:
        classes = pack_images(labels, predictions)
    content |= {"schema": SCHEMA, "classes": classes, "verdicts": verdicts}
    return parse_record(_dump_json(content).encode())


def pack_images(labels: Classes, predictions: Classes | None = None) -> dict[str, Any]:
    """Return (images,) classes as the fields of PackedClasses."""
    packed = None if predictions is None else packing.pack_classes(predictions)
    return {"images": labels.size, "labels": packing.pack_classes(labels), "predictions": packed}


def copy_record(record: Record, **content: Any) -> Record:
    """Return a record of the current version with other content. Raises RecordError where wrong."""
    values = record.model_dump(exclude={"schema_"}) | {"spec": json.loads(record.spec.json())}
    return parse_record(_dump_json(values | {"schema": SCHEMA} | content).encode())


def parse_record(content: bytes) -> Record:
    """Return the record in JSON. Raises RecordError where it is not one."""
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        raise RecordError(describe_first_error(error)) from error


def describe_first_error(error: ValidationError) -> str:
    """Return where the first error is and why, in one line."""
    first = error.errors()[0]
    location = ".".join(map(str, first["loc"]))
    if location == "schema.version" and isinstance(first["input"], int):
        return f"of schema version {first['input']}, this program reads 1 to {VERSION}"
    reason = " ".join(first["msg"].removeprefix("Value error, ").split())
    # A key of the file may hold anything.
    return fields.escape_unprintable(f"{location}: {reason}" if location else reason)


def _dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
