"""A record: one finished run as a small JSON file without tensors.

It holds what a leaderboard needs and what checks it, and nothing twice: tags and parameters that
follow from the spec are derived, and so is the last value of a curve.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from leaderboards.schema import fields

# The version changes with the meaning of a field.
SCHEMA = {"name": "robust-distill-bench/record", "version": 1}
# The bootstrap's memory grows with the test images.
MAX_TEST_IMAGES = 100_000
METRIC_NAME = re.compile(r"[a-z0-9_@/:. -]+")
# An accuracy was computed in single precision, the mean of its verdicts in double.
ACCURACY_TOLERANCE = 1e-5
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Epoch = Annotated[int, Field(ge=0, lt=2**31)]
# (images,) or (seeds, images): whether each test image survived AutoAttack.
Verdicts: TypeAlias = NDArray[np.bool_]


class RecordError(ValueError):
    """A file or a run makes no record; the message is one line."""


class StrictModel(BaseModel):
    """All stated fields and no others; numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Schema(StrictModel):
    """The name and version of the format."""

    name: Literal["robust-distill-bench/record"]
    version: Literal[1]


class RecordedSpec(StrictModel, extra="allow"):
    """The fields that bench.protocol.spec.Spec writes; further ones are taken as they are."""

    suite: str = Field(pattern=f"^{fields.EXPERIMENT.pattern}$")
    role: Literal["student", "teacher"]
    dataset: str
    arch: str
    method: str
    teachers: dict[str, str]
    seed: int = Field(ge=0, lt=2**63)

    @property
    def id(self) -> str:
        content = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class PackedVerdicts(StrictModel):
    """Verdicts of AutoAttack on the best checkpoint for the first `images` test images.

    survived: base64 of packed bits.
    """

    images: int = Field(gt=0, le=MAX_TEST_IMAGES)
    survived: str

    def unpack(self) -> Verdicts:
        """Return (images,) bool. Raises ValueError for another number of bits."""
        content = base64.b64decode(self.survived, validate=True)
        if len(content) != -(-self.images // 8):
            raise ValueError(f"verdicts: {8 * len(content)} bits for {self.images} images")
        packed = np.frombuffer(content, dtype=np.uint8)
        return np.unpackbits(packed, count=self.images).astype(np.bool_)


class Record(StrictModel):
    """One finished run.

    run_id, start_time (ms): in the store that it is from. checksums: sha256 of checkpoints.
    metrics: results and costs as fractions, seconds or counts. curves: (epoch, value).
    """

    schema_: Schema = Field(alias="schema")
    spec_id: Hex16
    run_id: Hex32
    start_time: int = Field(ge=0, lt=2**42)
    spec: RecordedSpec
    tags: dict[str, str]
    # As in CHECKPOINTS: a type needs the names written out.
    checksums: dict[Literal["best", "last", "ema", "swa"], Hex64]
    metrics: dict[str, float]
    curves: dict[str, list[tuple[Epoch, float]]]
    environment: dict[str, Any]
    verdicts: PackedVerdicts | None

    @model_validator(mode="after")
    def _check(self) -> Record:
        if self.spec.id != self.spec_id:
            raise ValueError(f"spec_id is {self.spec_id}, the spec's content gives {self.spec.id}")
        self._check_tags()
        self._check_metrics()
        self._check_curves()
        self._check_verdicts()
        return self

    def _check_tags(self) -> None:
        for name in sorted(self.tags):
            if name not in fields.RECORD_TAGS:
                raise ValueError(f"tags: {name!r} does not belong there")
        for name in fields.JSON_TAGS:
            if fields.parse_json_tag(self.tags.get(name, "")) is None:
                raise ValueError(f"tags.{name}: not a JSON object of texts")

    def _check_metrics(self) -> None:
        for name, value in self.metrics.items():
            is_result = name.startswith(fields.METRIC_PREFIXES) and METRIC_NAME.fullmatch(name)
            if name in self.curves or not is_result:
                raise ValueError(f"metrics: {name!r} does not belong there")
            is_accuracy = name.startswith("test") and not name.endswith(("/n", "_n"))
            if is_accuracy and not 0 <= value <= 1:
                raise ValueError(f"metrics: {name} = {value} is no accuracy")

    def _check_curves(self) -> None:
        for name, points in self.curves.items():
            epochs = [epoch for epoch, _ in points]
            if not fields.is_curve(name) or epochs != sorted(set(epochs)):
                raise ValueError(f"curves: {name!r} is none, or its epochs are not in order")

    def _check_verdicts(self) -> None:
        accuracy = self.metrics.get("test/aa")
        if (accuracy is None) != (self.verdicts is None):
            raise ValueError(
                "AutoAttack accuracy and verdicts on single images: there must be both or neither"
            )
        if accuracy is None or self.verdicts is None:
            return
        images = self.verdicts.images
        mean = float(self.verdicts.unpack().mean())
        same_images = self.metrics.get("test/aa_n", images) == images
        if abs(mean - accuracy) > ACCURACY_TOLERANCE or not same_images:
            message = f"verdicts: AutoAttack accuracy {mean:.4f} on {images} images"
            raise ValueError(f"{message}, recorded is {accuracy:.4f}")

    @property
    def survived(self) -> Verdicts:
        """(images,) bool. Raises RecordError without verdicts."""
        if not self.verdicts:
            raise RecordError("no verdicts on single images")
        return self.verdicts.unpack()

    @property
    def training_key(self) -> tuple[str, ...]:
        """The settings that determine a checkpoint; other attacks on it make another spec."""
        spec = self.spec
        return spec.role, spec.dataset, spec.arch, spec.method, str(spec.seed)

    @property
    def file_name(self) -> str:
        """A readable name in plain ASCII, the same for the same spec."""
        spec = self.spec
        name = f"{spec.suite}-{spec.dataset}-{spec.arch}-{spec.method}-seed{spec.seed}"
        return f"{re.sub('[^A-Za-z0-9@._+]+', '-', name)[:150]}-{self.spec_id[:8]}.json"

    def to_json(self) -> str:
        """Return JSON with a line for each field."""
        lines = []
        for key, value in self.model_dump(by_alias=True).items():
            lines.append(f" {json.dumps(key)}: {_dump_json(value)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def to_row(self) -> dict[str, Any]:
        """Return the row that store.Reader gives, without artifact_uri."""
        spec = self.spec
        row: dict[str, Any] = {"experiment": spec.suite, "run_id": self.run_id}
        row |= {"start_time": self.start_time, "role": spec.role, "spec_id": self.spec_id}
        row |= {"dataset": spec.dataset, "method": spec.method, "student": spec.arch}
        row |= {"teacher": fields.join_teachers(spec.teachers), "seed": str(spec.seed)}
        row |= self.tags
        for checkpoint, sha256 in self.checksums.items():
            row[f"sha256.{checkpoint}"] = sha256
        row |= self.metrics
        for name, points in self.curves.items():
            if points and name.startswith(fields.METRIC_PREFIXES):
                row[name] = points[-1][1]
        for name, text in _flatten("", {"tuned": 0} | spec.model_dump()):
            row[f"param/{name}"] = text
        return row


def pack_verdicts(survived: Verdicts) -> dict[str, Any]:
    """Return (images,) bool as the fields of PackedVerdicts."""
    bits = np.packbits(survived).tobytes()
    return {"images": survived.size, "survived": base64.b64encode(bits).decode()}


def build_record(**content: Any) -> Record:
    """Return the record with this content. Raises RecordError where it is not one."""
    return parse_record(_dump_json(content | {"schema": SCHEMA}).encode())


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
    reason = " ".join(first["msg"].removeprefix("Value error, ").split())
    # A key of the file may hold anything.
    return fields.escape_unprintable(f"{location}: {reason}" if location else reason)


def _dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) as bench.protocol.spec.Spec.flat does and as MLflow keeps them."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else key, item)
    elif isinstance(value, list):
        yield prefix, str(tuple(value))
    else:
        yield prefix, str(value)
