"""A finished run as one small JSON file, without tensors: what a leaderboard needs of it, and what checks it.

A file says nothing twice: tags and parameters that follow from the spec are derived, and so is the last value of a curve.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlparse
from urllib.request import url2pathname

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json

from leaderboards.schema import fields

if TYPE_CHECKING:
    import pandas as pd

    from leaderboards.stats.rank import Flags

SCHEMA = {
    "name": "robust-distill-bench/record",
    "version": 1,
}  # the version changes with the meaning of a field
LARGEST = 1_000_000  # bytes of a file
MOST = 100_000  # test images: the bootstrap's memory grows with them
METRIC = re.compile(r"[a-z0-9_@/:. -]+")
Hex16 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Epoch = Annotated[int, Field(ge=0, lt=2**31)]
AGREE = 1e-5  # between an accuracy and the verdicts it is the mean of: it was computed in single precision


class RecordError(ValueError):
    """Why a file or a run makes no record; one line."""


class Part(BaseModel):
    """Of the fields stated, all and no others; numbers finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Schema(Part):
    name: Literal["robust-distill-bench/record"]
    version: Literal[1]


class Spec(Part, extra="allow"):
    """What bench.protocol.spec.Spec writes, whose further fields are taken as they are."""

    suite: Annotated[str, StringConstraints(pattern=f"^{fields.EXPERIMENT.pattern}$")]
    role: Literal["student", "teacher"]
    dataset: str
    arch: str
    method: str
    teachers: dict[str, str]
    seed: int = Field(ge=0, lt=2**63)

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[
            :16
        ]


class Verdicts(Part):
    """Whether each of the first `images` test images survived AutoAttack on the best checkpoint: base64 of packed bits."""

    images: int = Field(gt=0, le=MOST)
    survived: str

    @property
    def flags(self) -> Flags:
        """(images,) bool. Raises ValueError for another number of bits."""
        import numpy as np

        packed = np.frombuffer(base64.b64decode(self.survived, validate=True), dtype=np.uint8)
        if packed.size != -(-self.images // 8):
            raise ValueError(f"verdicts: {8 * packed.size} bits for {self.images} images")
        return np.unpackbits(packed, count=self.images).astype(np.bool_)


class Record(Part):
    """One finished run.

    run_id, start_time (ms): in the store that it is from. checksums: sha256 of checkpoints. metrics: results and costs,
    fractions, seconds or counts. curves: (epoch, value).
    """

    schema_: Schema = Field(alias="schema")
    spec_id: Hex16
    run_id: Hex32
    start_time: int = Field(ge=0, lt=2**42)
    spec: Spec
    tags: dict[str, str]
    checksums: dict[Literal["best", "last", "ema", "swa"], Hex64]
    metrics: dict[str, float]
    curves: dict[str, list[tuple[Epoch, float]]]
    environment: dict[str, Any]
    verdicts: Verdicts | None

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.spec.id != self.spec_id:
            raise ValueError(f"spec_id is {self.spec_id}, the spec's content gives {self.spec.id}")
        if odd := sorted(self.tags.keys() - {*fields.NOTED}):
            raise ValueError(f"tags: {odd[0]!r} does not belong there")
        if odd := [name for name in fields.TEXTS if fields.texts(self.tags.get(name, "")) is None]:
            raise ValueError(f"tags.{odd[0]}: not a JSON object of texts")
        for name, value in self.metrics.items():
            if (
                name in self.curves
                or not name.startswith(fields.METRICS)
                or not METRIC.fullmatch(name)
            ):
                raise ValueError(f"metrics: {name!r} does not belong there")
            if name.startswith("test") and not name.endswith(("/n", "_n")) and not 0 <= value <= 1:
                raise ValueError(f"metrics: {name} = {value} is no accuracy")
        for name, points in self.curves.items():
            if not fields.curve(name) or any(
                a >= b for (a, _), (b, _) in itertools.pairwise(points)
            ):
                raise ValueError(f"curves: {name!r} is none, or its epochs are not in order")
        self._check_verdicts()
        return self

    def _check_verdicts(self) -> None:
        told = self.metrics.get("test/aa"), self.metrics.get("test/aa_n")
        if (told[0] is None) != (self.verdicts is None):
            raise ValueError(
                "AutoAttack accuracy and verdicts on single images: there must be both or neither"
            )
        if self.verdicts and told[0] is not None:
            mean = float(self.verdicts.flags.mean())
            if abs(mean - told[0]) > AGREE or told[1] not in (None, self.verdicts.images):
                found = f"{mean:.4f} on {self.verdicts.images} images"
                raise ValueError(
                    f"verdicts: AutoAttack accuracy {found}, recorded is {told[0]:.4f}"
                )

    @property
    def survived(self) -> Flags:
        """(images,) bool. Raises RecordError where there are no verdicts."""
        if not self.verdicts:
            raise RecordError("no verdicts on single images")
        return self.verdicts.flags

    @property
    def trained(self) -> tuple[str, ...]:
        """What only one checkpoint can come from; other attacks on it make another spec."""
        spec = self.spec
        return spec.role, spec.dataset, spec.arch, spec.method, str(spec.seed)

    @property
    def name(self) -> str:
        """What its file is called: the same for the same spec, readable, plain ASCII."""
        spec = self.spec
        words = f"{spec.suite}-{spec.dataset}-{spec.arch}-{spec.method}-seed{spec.seed}"
        return f"{re.sub('[^A-Za-z0-9@._+]+', '-', words)[:150]}-{self.spec_id[:8]}.json"

    def text(self) -> str:
        """JSON, a line for each field."""
        content = self.model_dump(by_alias=True)
        lines = (f" {json.dumps(key)}: {_json(value)}" for key, value in content.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def row(self) -> dict[str, Any]:
        """As store.Reader gives it, but for the place of the file."""
        spec = self.spec
        last = {
            name: points[-1][1]
            for name, points in self.curves.items()
            if points and name.startswith(fields.METRICS)
        }
        return {
            "experiment": spec.suite, "run_id": self.run_id, "start_time": self.start_time,
            "role": spec.role, "spec_id": self.spec_id, "dataset": spec.dataset, "method": spec.method,
            "student": spec.arch, "teacher": fields.taught_by(spec.teachers), "seed": str(spec.seed),
            **self.tags, **{f"sha256.{name}": sha256 for name, sha256 in self.checksums.items()}, **self.metrics, **last,
            **{f"param/{name}": value for name, value in _flat("", {"tuned": 0} | spec.model_dump())},
        }  # fmt: skip


def read(path: Path) -> Record:
    """The record in a file. Raises RecordError for whatever is wrong with it."""
    if path.exists() and not path.is_file():
        raise RecordError("no regular file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise RecordError(str(error.strerror)) from error
    if len(content) > LARGEST:
        raise RecordError(f"larger than {LARGEST:,} bytes")
    try:
        json.dumps(
            from_json(content, allow_inf_nan=False), allow_nan=False
        )  # 1e400 is read as infinity
    except ValueError as error:
        raise RecordError(f"not JSON: {error}") from error
    return _checked(content)


def packed(flags: Flags) -> dict[str, Any]:
    """(images,) bool as Verdicts have them."""
    import numpy as np

    return {
        "images": flags.size,
        "survived": base64.b64encode(np.packbits(flags).tobytes()).decode(),
    }


def made(**content: Any) -> Record:
    """The record with this content. Raises RecordError where it is not one."""
    return _checked(_json(content | {"schema": SCHEMA}).encode())


def _checked(content: bytes) -> Record:
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        raise RecordError(first(error)) from error


def first(error: ValidationError) -> str:
    """What is wrong first, in one line: where, and why."""
    wrong = error.errors()[0]
    place = ".".join(str(step) for step in wrong["loc"])
    said = " ".join(wrong["msg"].removeprefix("Value error, ").split())
    return f"{place}: {said}" if place else said


def holds(uri: str) -> bool:
    """Whether the artifacts of a run are in a record."""
    return uri.startswith("file:") and uri.endswith(".json")


def at(uri: str) -> Record:
    """The record that `holds` what belongs to a run. Raises RecordError."""
    return read(Path(url2pathname(urlparse(uri).path)))


@dataclass(frozen=True)
class Folder:
    """A store.Reader of the files NAME.json in a folder; of nothing, an empty one."""

    path: Path | None = None

    def runs(self, suite: str | None) -> tuple[pd.DataFrame, list[str]]:
        import pandas as pd

        found, problems = self._records()
        rows = [
            record.row() | {"artifact_uri": path.absolute().as_uri()}
            for path, record in found
            if fields.wanted(record.spec.suite, suite)
        ]
        return pd.DataFrame(rows), problems

    def curves(self, runs: Sequence[str]) -> dict[str, fields.Curves]:
        wanted = set(runs)
        return {
            record.run_id: {
                name: ([step for step, _ in points], [value for _, value in points])
                for name, points in record.curves.items()
            }
            for _, record in self._records()[0]
            if record.run_id in wanted
        }

    def _records(self) -> tuple[list[tuple[Path, Record]], list[str]]:
        """The records that count, by the names of their files, and why the others do not."""
        sound, problems, known = [], [], dict[str, tuple[str, Record]]()
        for path in sorted(self.path.glob("*.json")) if self.path else ():
            name = os.fsencode(path.name).decode(errors="backslashreplace")
            try:
                found = read(path)
                for key in (found.spec_id, found.run_id):
                    if key in known:
                        raise RecordError(f"{known[key][0]} is the record of {key} already")
                other = known.get(best := found.checksums.get("best", ""))
                if other and other[1].trained != found.trained:
                    raise RecordError(
                        f"{other[0]} has the same checkpoint, of another method, network or seed"
                    )
            except RecordError as error:
                problems.append(f"{name} is left out: {error}")
                continue
            for key in (found.spec_id, found.run_id, *[best] * bool(best)):
                known.setdefault(key, (name, found))
            sound.append((path, found))
        return sound, problems


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """As bench.protocol.spec.Spec.flat, and as MLflow keeps it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, item)
    else:
        yield prefix, str(tuple(value) if isinstance(value, list) else value)
