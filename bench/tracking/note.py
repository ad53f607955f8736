"""The page of a run in MLflow: its name, its note in Markdown, its figures."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import numpy as np

from leaderboards.schema import metrics
from leaderboards.schema.checkpoints import CHECKPOINTS
from leaderboards.schema.fields import Artifact, Tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from leaderboards.schema.record import Record

NOTE_TAG = "mlflow.note.content"
MAX_LENGTH = 8000  # characters that MLflow keeps of a tag
# The charts hide runs that are folded under their parents, unless they are sorted by a metric.
CHART_VIEW = {
    "workflowType": "machine_learning",
    "compareRunsMode": "CHART",
    "orderByKey": f"metrics.`{metrics.RANK_METRIC}`",
}


def run_title(tags: dict[str, str]) -> str:
    """Return the name of a run without its seed: method, variant, student and data."""
    variant = tags["variant"] and f"({tags['variant']})"
    return " ".join(filter(None, (tags["method"], variant, tags["student"], tags["dataset"])))


def run_note(record: Record, epoch: int) -> str:
    """Write the note of a finished run, of which validation chose the checkpoint of an epoch."""
    flags = ["No sanity flag was raised."]
    if record.flags:
        flags = [f"- **{escape(name)}**: {escape(text)}" for name, text in record.flags.items()]
        flags = ["Sanity flags:", "", *flags]
    clean, robust = (
        dict(zip(*record.curves[name], strict=True))[epoch]
        for name in (metrics.VAL_CLEAN, metrics.VAL_ROBUST)
    )
    parts = [
        accuracy_table(record),
        f"Accuracy in percent, {metrics.describe_images(record.metrics)}. "
        f"Validation chose epoch {epoch}, from 0, of {record.spec.training.epochs}: "
        f"{100 * clean:.1f} clean and {100 * robust:.1f} robust there.",
        list_facts(record),
        "\n".join(flags),
        f"~~~\n{record.tags[Tag.COMMAND]}\n~~~",
        f"{figure_link(record.run_id, 'curves')} {figure_link(record.run_id, 'attacks')}",
    ]
    return "\n\n".join(parts)[:MAX_LENGTH]


def parent_note(tags: dict[str, str], experiment_id: str, run_id: str) -> str:
    """Write the note of a parent run, which is a row of the leaderboard."""
    search_filter = f"tags.mlflow.parentRunId = '{run_id}'"
    query = urlencode({"searchFilter": search_filter, **CHART_VIEW})
    row = f"{escape(run_title(tags))}, teacher {escape(tags['teacher'])}"
    return (
        f"One row of the leaderboard: {row}. The runs below it are its seeds and hold the numbers. "
        f"[Compare its seeds](#/experiments/{experiment_id}/runs?{query}), which is the filter "
        f"`{search_filter}`, or group all runs by the tag `method`."
    )


def escape(text: str) -> str:
    """Escape a text so that Markdown and HTML show it as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", html.escape(text, quote=False))


def accuracy_table(record: Record) -> str:
    """Draw a Markdown table in percent: a line per checkpoint, a column per attack."""
    attacks, rows = accuracy_rows(record.accuracies, digits=1)
    heading = " | ".join(map(escape, attacks))
    lines = [f"| checkpoint | {heading} |", f"| --- |{' ---: |' * len(attacks)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def accuracy_rows(
    accuracy: dict[str, dict[str, float]], digits: int
) -> tuple[list[str], list[list[str]]]:
    """Return the attacks, and for each checkpoint its label and accuracies in percent, as text."""
    attacks = metrics.sort_attacks(chain.from_iterable(accuracy.values()))
    rows = []
    for name, values in accuracy.items():
        texts = [f"{100 * values[key]:.{digits}f}" if key in values else "-" for key in attacks]
        rows.append([CHECKPOINTS[name].label, *texts])
    return attacks, rows


def list_facts(record: Record) -> str:
    """List teachers, cost and code in Markdown."""
    teachers = [f"{escape(name)} ({role})" for role, name in record.spec.teachers.items()]
    training, evaluation = (
        record.metrics.get(name, 0.0) / 60 for name in (metrics.TRAIN_SECONDS, metrics.EVAL_SECONDS)
    )
    code = record.tags.get(Tag.CODE_COMMIT, "unknown")
    if record.tags.get(Tag.CODE_DIRTY) == "true":
        code += " with uncommitted changes"
    minutes = f"{training:.1f} min of training, {evaluation:.1f} min of evaluation"
    return f"- Teacher: {', '.join(teachers) or 'none'}\n- Cost: {minutes}\n- Code: {code}"


def figure_link(run_id: str, name: str) -> str:
    """Link a figure as MLflow's own server delivers it."""
    path = quote(f"{Artifact.FIGURES}/{name}.png", safe="")
    return f"![{name}](get-artifact?path={path}&run_uuid={run_id})"


def draw_figures(record: Record, epoch: int, folder: Path) -> None:
    """Draw curves.png, which marks the chosen epoch, and attacks.png into a new folder."""
    # Without pyplot there is no global state to clean up.
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    terms = [name for name in record.curves if name.startswith(metrics.TRAIN)]
    # The sum of the others.
    terms.remove(metrics.TRAIN_LOSS)
    figure = Figure(figsize=(9, 3.2), dpi=90)
    accuracy, loss = figure.subplots(1, 2)
    validation = (metrics.VAL_CLEAN, metrics.VAL_ROBUST)
    draw_curves(accuracy, "validation accuracy, %", record, validation, 100)
    accuracy.axvline(epoch, color="0.6", linestyle=":", label="chosen")
    draw_curves(loss, "training loss", record, terms, 1)
    figure.subplots_adjust(0.07, 0.15, 0.99, 0.89, wspace=0.18)
    save_figure(figure, folder / "curves.png")
    figure = Figure(figsize=(6, 3.2), dpi=90)
    draw_bars(figure.subplots(), record.accuracies)
    figure.subplots_adjust(0.1, 0.2, 0.99, 0.89)
    save_figure(figure, folder / "attacks.png")


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure with its legends above the axes, where no curve can lie."""
    box = (0.5, 0.99)
    for axes in figure.axes:
        axes.legend(loc="lower center", bbox_to_anchor=box, ncols=6, fontsize=8, frameon=False)
    figure.savefig(path)


def draw_curves(axes: Axes, label: str, record: Record, names: Iterable[str], scale: float) -> None:
    """Draw metrics over the epochs."""
    for name in names:
        epochs, values = record.curves[name]
        marker = "." if len(values) < 20 else ""
        axes.plot(epochs, [scale * value for value in values], marker=marker, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)


def draw_bars(axes: Axes, accuracy: dict[str, dict[str, float]]) -> None:
    """Draw a group of bars per attack, a bar per checkpoint."""
    attacks = metrics.sort_attacks(chain.from_iterable(accuracy.values()))
    attacks.remove("worst")
    positions, width = np.arange(len(attacks)), 0.8 / len(accuracy)
    for index, (name, values) in enumerate(accuracy.items()):
        heights = [100 * values.get(attack, 0.0) for attack in attacks]
        axes.bar(positions + index * width, heights, width, label=CHECKPOINTS[name].label)
    axes.set_xticks(positions + 0.4 - width / 2, attacks, rotation=20, parse_math=False)
    axes.set_ylabel("test accuracy, %")
