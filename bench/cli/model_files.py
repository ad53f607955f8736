"""The files of a trained network for others: its tensors or a graph, its card, its record."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from bench import datasets
from bench.models import formats, hub
from bench.records import trained
from bench.reference.model_card import ModelFile, render_card
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import TrackingStore
from bench.version import __version__
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.fields import FINISHED, HUB_SCHEME, Artifact, Tag
from leaderboards.schema.record import Record, copy_record

SAFETENSORS = "safetensors"
CHECKPOINT_FILE = "best.pt"


def render_model(
    record: Record, store: Path, checkpoint: str, name: str, form: str, address: str = ""
) -> tuple[bytes, str]:
    """Return the content of a file called `name` with a run's network, and its card.

    form: one of `formats.FORMATS`. address: where the file is published. Raise BenchError where the
    checkpoint or a package of the format is missing.
    """
    net = trained.load_network(record, store, checkpoint)
    metadata = trained.describe(record, checkpoint) | {"bench": __version__}
    content = formats.encode(net, datasets.get(record.spec.dataset).shape, form, metadata)
    source_sha256, sha256 = metadata["source_sha256"], hashlib.sha256(content).hexdigest()
    file = ModelFile(name, form, checkpoint, source_sha256, len(content), sha256, address)
    return content, render_card(record, file)


def publish_run(store: Path, source: str, repository: str) -> str:
    """Write a run's best network, its card and its record to a hub; return the commit's address.

    From then on the record says where its checkpoint is, so that others can verify it. source: a
    run or a row. Raise BenchError where one of them cannot be had or written.
    """
    hub.check_repository(repository)
    record = trained.find_record(store, source)
    address = f"{HUB_SCHEME}{repository}"
    content, card = render_model(record, store, BEST, hub.MODEL_FILE, SAFETENSORS, address)
    tags = {Tag.CHECKPOINT_ADDRESS.value: f"{address}:{CHECKPOINT_FILE}"}
    published = copy_record(record, tags=record.tags | tags)
    with tempfile.TemporaryDirectory() as folder:
        best = trained.fetch_checkpoint(record, store, BEST, Path(folder)).read_bytes()
    texts = {Artifact.RECORD: published.to_json(), "README.md": card}
    files = {hub.MODEL_FILE: content, CHECKPOINT_FILE: best}
    files |= {name: text.encode() for name, text in texts.items()}
    spec = record.spec
    commit = hub.publish(repository, files, f"{spec.method} {spec.arch} on {spec.dataset}")
    save_published(TrackingStore(store), published, tags)
    return commit


def save_published(store: TrackingStore, record: Record, tags: dict[str, str]) -> None:
    """Write a record that was published into its run, with the tags that it has now."""
    run = store.find_run(record.spec, FINISHED)
    if run:
        logger = RunLogger(store.client, run.info.run_id)
        logger.set_tags(tags)
        logger.log_record_file(record)
    store.save_record(record)
