"""The files of a trained network for others: its tensors or a graph, its card, its record."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bench import datasets
from bench.models import formats, hub
from bench.records import trained
from bench.reference.model_card import ModelFile, render_card
from bench.version import __version__
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.fields import Artifact
from leaderboards.schema.record import Record

SAFETENSORS = "safetensors"


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

    source: a run or a row. Raise BenchError where one of them cannot be had or written.
    """
    record = trained.find_record(store, source)
    address = f"{hub.SCHEME}{repository}"
    content, card = render_model(record, store, BEST, hub.MODEL_FILE, SAFETENSORS, address)
    texts = {Artifact.RECORD: record.to_json(), "README.md": card}
    files = {hub.MODEL_FILE: content} | {name: text.encode() for name, text in texts.items()}
    spec = record.spec
    return hub.publish(repository, files, f"{spec.method} {spec.arch} on {spec.dataset}")
