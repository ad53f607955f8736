"""A folder of records with invented numbers, written as the benchmark writes them."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import specs

from leaderboards.schema import fields
from leaderboards.schema.metrics import NUM_ATTACKED, NUM_IMAGES, RANK_METRIC, WORST
from leaderboards.schema.packing import Verdicts
from leaderboards.schema.record import Record, build_record
from leaderboards.schema.spec import Spec, Training

TAGS = {"variant": "", "code_dirty": "false", "command": "python -m bench run --suite digits"}


class Records:
    """Write records of finished runs into a folder, each a minute after the one before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = 1_700_000_000_000

    def run(self, method: str, aa: float | None, *args: Any, name: str = "", **content: Any) -> str:
        """Write the record that `make` makes into NAME, its own name by default; return its run id.

        No file is replaced: two runs of one spec need two names.
        """
        record = self.make(method, aa, *args, **content)
        path = self.folder / (name or record.spec.record_name)
        with path.open("x") as file:
            file.write(record.to_json())
        return record.run_id

    def make(
        self,
        method: str,
        aa: float | None,
        experiment: str = "digits@1",
        *,
        metrics: Mapping[str, float | None] | None = None,
        params: Mapping[str, Any] | None = None,
        survived: Verdicts | None = None,
        teacher: str = "robust",
        student: str = "resnet8-w4",
        **content: Any,
    ) -> Record:
        """Make the record of a run with this accuracy under AutoAttack; None is without.

        Args:
            metrics: more of them, or others, or None for one that is not there; 360 test images.
            params: changes of the spec, nested names joined by dots.
            survived: (images,) bool; by default `aa` of the 100 images, or of test/aa_n, survive.
            teacher: of the role "robust", unless `params` have teachers; "none" for none.
            content: tags; role, dataset and seed of the spec; other fields of a record.
        """
        self.clock += 60_000
        changes = dict(params or {})
        if teacher != "none" and not any(name.startswith("teachers.") for name in changes):
            changes["teachers.robust"] = f"{teacher}-0"
        for field in ("role", "dataset", "seed"):
            if field in content:
                changes[field] = content.pop(field)
        spec = make_spec(changes, suite=experiment, method=method, arch=student)
        values: dict[str, Any] = {NUM_IMAGES: 360, **(metrics or {})}
        if aa is not None:
            if survived is None:
                images = values.get(NUM_ATTACKED, 100)
                survived = np.arange(images) < round(images * aa)
            values = {RANK_METRIC: aa, WORST: aa, NUM_ATTACKED: survived.size} | values
        tags = TAGS | {tag: content.pop(tag) for tag in fields.RECORD_TAGS if tag in content}
        empty: dict[str, Any] = {"checksums": {}, "curves": {}, "environment": {}}
        return build_record(
            spec_id=spec.id,
            run_id=uuid.uuid5(uuid.NAMESPACE_URL, str(self.clock)).hex,
            start_time=self.clock,
            spec=json.loads(spec.json()),
            tags=tags,
            metrics={key: value for key, value in values.items() if value is not None},
            survived=survived,
            **empty | content,
        )


def make_spec(params: Mapping[str, Any], **changes: Any) -> Spec:
    """Make a spec of 30 epochs, without teachers, from changes whose names dots join."""
    nested: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    nested["training"] = {"epochs": 30}
    for name, value in params.items():
        field, _, inner = name.partition(".")
        if inner:
            nested[field][inner] = value
        else:
            changes[field] = value
    training = Training(**nested.pop("training"))
    return specs.make_spec(training, **nested, **changes)
