"""The card of a trained network: a page of Markdown made from the record of its run."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bench import datasets
from bench.models.size import network_size
from bench.reference.about import describe_method
from bench.system.tables import readable_number
from bench.tracking import note
from leaderboards.schema import metrics
from leaderboards.schema.checkpoints import CHECKPOINTS
from leaderboards.schema.fields import NORM_LABELS, Tag, escape_unprintable
from leaderboards.schema.record import Record

PROJECT = "robust-distill-bench"
# Lines of Python by format.
LOADERS = {
    "safetensors": "import bench\n\nnet = bench.load({file})",
    "state-dict": "import bench\n\nnet = bench.load({file}, arch={arch}, dataset={dataset})",
    "torch-export": "net = torch.export.load({file}).module()",
    "onnx": "import onnxruntime\n\nsession = onnxruntime.InferenceSession({file})",
}
CALLS = {"onnx": '(logits,) = session.run(["logits"], {"images": images.numpy()})'}
WITHOUT = {
    "safetensors": "The tensors alone: `safetensors.torch.load_file`.",
    "state-dict": "The tensors alone: `torch.load` with `weights_only=True`.",
    "torch-export": "It is a graph on the CPU, in eval mode, and needs nothing but torch.",
    "onnx": "It is a graph for any runtime of ONNX.",
}


@dataclass(frozen=True)
class ModelFile:
    """The file beside its card, and the checkpoint of the run that it holds.

    size: in bytes. address: where the file is published, from which it is loaded.
    """

    name: str
    form: str
    checkpoint: str
    source_sha256: str
    size: int
    sha256: str
    address: str = ""


def render_card(record: Record, file: ModelFile) -> str:
    """Return the card. Texts of the record stay texts, whatever they hold.

    Raise UsageError for a network or a data set that is unknown here.
    """
    spec = record.spec
    parts = [
        render_head(record),
        f"# {escape(spec.method)} {escape(spec.arch)} on {escape(spec.dataset)}",
        f"A classifier of images in [0, 1], trained and attacked by {PROJECT}. The normalisation "
        f"is inside. `{CHECKPOINTS[file.checkpoint].label}` is its checkpoint.",
        "\n".join(f"- {name}: {text}" for name, text in list_facts(record, file).items()),
        "## Accuracy",
        render_accuracy(record),
        "## Load it",
        render_loader(record, file),
        "## How it was made",
        f"    {escape_unprintable(record.tags.get('command', ''))}",
        render_origin(record, file),
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return a text of the record as Markdown that shows it as it is, in one line."""
    return note.escape(escape_unprintable(text))


def render_head(record: Record) -> str:
    """Return the head of YAML by which hubs of models sort cards. JSON's texts are YAML's."""
    spec = record.spec
    tags = ["image-classification", "adversarial-robustness", "knowledge-distillation", spec.method]
    lines = [f"tags: {json.dumps(tags)}", f"datasets: {json.dumps([spec.dataset])}"]
    task = 'pipeline_tag: "image-classification"'
    return "\n".join(["---", task, *lines, 'metrics: ["accuracy"]', "---"])


def list_facts(record: Record, file: ModelFile) -> dict[str, str]:
    """Return what the network is, as Markdown."""
    spec = record.spec
    card, info = describe_method(spec.method), datasets.get(spec.dataset)
    method = escape(spec.method)
    if card:
        method += f", {escape(card.full_name)}"
    if card and card.paper:
        title = escape(card.paper.title)
        link = f"[{title}](<{card.paper.url}>)" if card.paper.url else title
        method += f": {escape(card.paper.authors)}, {link}, {escape(card.paper.published)}"
    sha256 = record.teacher_sha256
    teachers = [
        f"{escape(identity)} ({escape(role)}; sha256 {escape(sha256.get(role, 'not recorded'))})"
        for role, identity in spec.teachers.items()
    ]
    size = network_size(spec.arch, spec.dataset)
    eps, inner_step = readable_number(spec.eps), readable_number(spec.inner_step)
    facts = {
        "method": method,
        "variant": escape(record.tags.get(Tag.VARIANT, "")),
        "suite": f"{escape(spec.suite)}, seed {spec.seed}",
        "data": f"{escape(info.name)}, {' x '.join(map(str, info.shape))}: {escape(info.about)}",
        "network": f"{escape(spec.arch)}, {size.parameters:,} parameters, "
        f"{size.multiply_adds:,} multiply-adds for one image",
        "teacher": "; ".join(teachers) or "none",
        "threat model": f"{NORM_LABELS[spec.norm]}, eps {eps} of pixels in [0, 1]; inner attack: "
        f"{spec.inner_steps} steps of {inner_step}",
        "file": f"{file.form}, {file.size:,} bytes",
    }
    return {name: text for name, text in facts.items() if text}


def render_accuracy(record: Record) -> str:
    """Return the accuracies by checkpoint and attack, and the sanity flags."""
    if not record.accuracies:
        return "No accuracy is recorded."
    images = f"Percent of {metrics.describe_images(record.metrics)}"
    flags = record.flags.items()
    lines = [f"- sanity flag {escape(name)}: {escape(text)}" for name, text in flags]
    flag_text = "\n".join(lines) or "No sanity flag was raised."
    return f"{note.accuracy_table(record)}\n\n{images}.\n\n{flag_text}"


def render_loader(record: Record, file: ModelFile) -> str:
    """Return lines of Python that load the file and classify two images."""
    spec = record.spec
    names = {"file": file.address or file.name, "arch": spec.arch, "dataset": spec.dataset}
    loader = LOADERS[file.form].format(**{key: json.dumps(name) for key, name in names.items()})
    shape = ", ".join(map(str, (2, *datasets.get(spec.dataset).shape)))
    code = [
        "import torch",
        *loader.splitlines(),
        f"images = torch.rand({shape})  # in [0, 1]",
        CALLS.get(file.form, "logits = net(images)"),
    ]
    return f"{indent(code)}\n\n{WITHOUT[file.form]}"


def indent(lines: list[str]) -> str:
    """Return lines as a block of code, which no text in them can end."""
    return "\n".join(f"    {line}".rstrip() for line in lines)


def render_origin(record: Record, file: ModelFile) -> str:
    """Return commit, run and hashes."""
    changes = ", with uncommitted changes" if record.tags.get(Tag.CODE_DIRTY) == "true" else ""
    facts = {
        "commit": escape(record.tags.get(Tag.CODE_COMMIT, "unknown")) + changes,
        "version": escape(str(record.environment.get("bench", "unknown"))),
        "run": f"{record.run_id}, spec {record.spec_id}",
        f"sha256 of {file.checkpoint}.pt": file.source_sha256,
        f"sha256 of {escape(file.name)}": file.sha256,
    }
    return "\n".join(f"- {name}: {text}" for name, text in facts.items())
