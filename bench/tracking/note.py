"""The page of a run in MLflow: its name, its note in Markdown, its figures."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import numpy as np

from leaderboards.schema.checkpoints import CHECKPOINTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.protocol.spec import Spec

NOTE_TAG = "mlflow.note.content"
MAX_LENGTH = 8000  # characters that MLflow keeps of a tag
FIGURES = "figures"
# The charts hide runs that are folded under their parents, unless they are sorted by a metric.
CHART_VIEW = {
    "workflowType": "machine_learning",
    "compareRunsMode": "CHART",
    "orderByKey": "metrics.`test/aa`",
}
NO_ATTACKS = ("n", "aa_n", "worst")


@dataclass(frozen=True)
class RunSummary:
    """The result of a finished run. Accuracies are fractions, beside counts and costs."""

    history: list[dict[str, float]]  # a row per epoch
    chosen: dict[str, float]  # the row of the epoch that validation chose
    accuracy: dict[str, dict[str, float]]  # by checkpoint and attack
    flags: dict[str, str]
    seconds: float  # of training


def run_title(tags: dict[str, str]) -> str:
    """Return the name of a run without its seed: method, variant, student and data."""
    variant = tags["variant"] and f"({tags['variant']})"
    return " ".join(filter(None, (tags["method"], variant, tags["student"], tags["dataset"])))


def run_note(spec: Spec, tags: dict[str, str], result: RunSummary, run_id: str) -> str:
    """Write the note of a finished run."""
    best, chosen = result.accuracy["best"], result.chosen
    images = f"{best['n']:,.0f} test images"
    if best.get("aa_n"):
        images += f", AutoAttack on {best['aa_n']:,.0f}"
    flags = ["No sanity flag was raised."]
    if result.flags:
        flags = [f"- **{escape(name)}**: {escape(text)}" for name, text in result.flags.items()]
        flags = ["Sanity flags:", "", *flags]
    parts = [
        accuracy_table(result.accuracy),
        f"Accuracy in percent, {images}. "
        f"Validation chose epoch {chosen['epoch']:.0f}, from 0, of {spec.training.epochs}: "
        f"{100 * chosen['val/clean']:.1f} clean and {100 * chosen['val/robust']:.1f} robust there.",
        list_facts(spec, tags, result),
        "\n".join(flags),
        f"~~~\n{tags['command']}\n~~~",
        f"{figure_link(run_id, 'curves')} {figure_link(run_id, 'attacks')}",
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


def attack_names(accuracy: dict[str, dict[str, float]]) -> list[str]:
    """Return the attacks in the order of evaluation, `worst` last."""
    names: list[str] = []
    for values in accuracy.values():
        for name in values:
            if name not in (*names, *NO_ATTACKS) and not name.startswith("cost/"):
                names.append(name)
    return [*names, "worst"]


def accuracy_table(accuracy: dict[str, dict[str, float]]) -> str:
    """Draw a Markdown table in percent: a line per checkpoint, a column per attack."""
    attacks = attack_names(accuracy)
    heading = " | ".join(map(escape, attacks))
    lines = [f"| checkpoint | {heading} |", f"| --- |{' ---: |' * len(attacks)}"]
    for name, values in accuracy.items():
        cells = [CHECKPOINTS[name].label]
        for attack in attacks:
            cells.append(f"{100 * values[attack]:.1f}" if attack in values else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def list_facts(spec: Spec, tags: dict[str, str], result: RunSummary) -> str:
    """List teachers, cost and code in Markdown."""
    teachers = [f"{escape(identity)} ({role})" for role, identity in spec.teachers.items()]
    seconds = sum(values.get("cost/eval_seconds", 0.0) for values in result.accuracy.values())
    code = tags.get("code_commit", "unknown")
    if tags.get("code_dirty") == "true":
        code += " with uncommitted changes"
    minutes = f"{result.seconds / 60:.1f} min of training, {seconds / 60:.1f} min of evaluation"
    return f"- Teacher: {', '.join(teachers) or 'none'}\n- Cost: {minutes}\n- Code: {code}"


def figure_link(run_id: str, name: str) -> str:
    """Link a figure as MLflow's own server delivers it."""
    path = quote(f"{FIGURES}/{name}.png", safe="")
    return f"![{name}](get-artifact?path={path}&run_uuid={run_id})"


def draw_figures(result: RunSummary, folder: Path) -> None:
    """Draw curves.png and attacks.png into a new folder."""
    # Without pyplot there is no global state to clean up.
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    history = result.history
    terms: dict[str, None] = {}
    for row in history:
        terms |= {name: None for name in row if name.startswith("train/")}
    figure = Figure(figsize=(9, 3.2), dpi=90)
    accuracy, loss = figure.subplots(1, 2)
    draw_curves(accuracy, "validation accuracy, %", history, ("val/clean", "val/robust"), 100)
    accuracy.axvline(result.chosen["epoch"], color="0.6", linestyle=":", label="chosen")
    draw_curves(loss, "training loss", history, terms, 1)
    figure.subplots_adjust(0.07, 0.15, 0.99, 0.89, wspace=0.18)
    save_figure(figure, folder / "curves.png")
    figure = Figure(figsize=(6, 3.2), dpi=90)
    draw_bars(figure.subplots(), result.accuracy)
    figure.subplots_adjust(0.1, 0.2, 0.99, 0.89)
    save_figure(figure, folder / "attacks.png")


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure with its legends above the axes, where no curve can lie."""
    box = (0.5, 0.99)
    for axes in figure.axes:
        axes.legend(loc="lower center", bbox_to_anchor=box, ncols=6, fontsize=8, frameon=False)
    figure.savefig(path)


def draw_curves(
    axes: Axes, label: str, history: list[dict[str, float]], metrics: Iterable[str], scale: float
) -> None:
    """Draw metrics over the epochs."""
    for name in metrics:
        epochs, values = [], []
        for row in history:
            if name in row:
                epochs.append(row["epoch"])
                values.append(scale * row[name])
        axes.plot(epochs, values, marker="." if len(values) < 20 else "", label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)


def draw_bars(axes: Axes, accuracy: dict[str, dict[str, float]]) -> None:
    """Draw a group of bars per attack, a bar per checkpoint."""
    attacks = attack_names(accuracy)[:-1]
    positions, width = np.arange(len(attacks)), 0.8 / len(accuracy)
    for index, (name, values) in enumerate(accuracy.items()):
        heights = [100 * values.get(attack, 0.0) for attack in attacks]
        axes.bar(positions + index * width, heights, width, label=CHECKPOINTS[name].label)
    axes.set_xticks(positions + 0.4 - width / 2, attacks, rotation=20, parse_math=False)
    axes.set_ylabel("test accuracy, %")
