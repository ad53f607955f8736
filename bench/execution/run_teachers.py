"""The teachers of a run: their files, wherever they were trained, and which ones it began with."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.execution.plan import PlannedRun
from bench.system.errors import BenchError, one_line
from bench.system.files import sha256_of_file
from bench.teachers import cards
from bench.teachers.cards import Card
from bench.tracking.outage import is_outage, patiently
from bench.tracking.store import TrackingStore, fetch_artifact
from bench.training.trainer import STATE
from leaderboards.schema.fields import FINISHED, Tag, checkpoint_artifact, checksum_tag

# In the folder of an unfinished run: the checksums of its teachers' checkpoints.
TEACHER_CHECKSUMS_FILE = "teachers.json"


def check_teachers(run: PlannedRun, store: TrackingStore, folder: Path) -> dict[str, str]:
    """Return the sha256 of each teacher's checkpoint by role, kept in the folder for a resumed run.

    Those that another machine trained are fetched. Raise BenchError for one that cannot be had, and
    if an earlier part of the training used other checkpoints.
    """
    checksums = {}
    for role, identity in run.spec.teachers.items():
        patiently(partial(bring_teacher, run, identity, store))
        checksums[role] = cards.find_card(store.root, identity, run.spec.dataset).sha256
    if not checksums:
        return {}
    path = folder / TEACHER_CHECKSUMS_FILE
    text = json.dumps(checksums)
    if (folder / STATE).exists() and path.exists() and path.read_text() != text:
        raise BenchError(
            "another checkpoint of its teacher was used before: --force restarts the run"
        )
    path.write_text(text)
    return checksums


def bring_teacher(run: PlannedRun, identity: str, store: TrackingStore) -> None:
    """Fetch the checkpoint of a recorded teacher, unless this store has it.

    Raise BenchError if it cannot be had, or is not the one of the record.
    """
    condition = f"tags.role = 'teacher' and tags.spec_id LIKE '{identity[-8:]}%'"
    recorded = store.newest_run(run.spec.suite, f"{condition} and attributes.status = '{FINISHED}'")
    # Without a run it is an imported one, or the student's failure says that it is missing.
    if not recorded:
        return
    tags, sha256 = recorded.data.tags, recorded.data.tags[checksum_tag()]
    at_hand = cards.has_teacher(store.root, identity)
    if at_hand and cards.find_card(store.root, identity).sha256 == sha256:
        return
    origin = f"trained here, {run.spec.suite}, spec {tags[Tag.SPEC_ID]}"
    card = Card(identity, tags[Tag.STUDENT], run.spec.dataset, sha256, origin)
    with TemporaryDirectory() as scratch:
        artifact, run_id = checkpoint_artifact(), recorded.info.run_id
        try:
            path = fetch_artifact(store.client, store.root, run_id, artifact, Path(scratch))
        # The errors of artifact stores have no common class.
        except Exception as error:
            if is_outage(error):
                raise
            cause = f"the checkpoint of {identity} cannot be fetched: {one_line(error, 120)}"
            advice = "`teacher train --force` makes the teacher once more"
            raise BenchError(f"{cause}; {advice}") from error
        if sha256_of_file(path) != sha256:
            raise BenchError(f"the checkpoint of {identity} is not the one of run {run_id}")
        cards.add_teacher(store.root, path, card)
