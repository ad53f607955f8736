"""What people read of a run in MLflow: its name, its note in Markdown, its figures."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.protocol.spec import Spec

TAG = "mlflow.note.content"
LONGEST = 8000  # characters that MLflow keeps of a tag
FIGURES = "figures"
# Runs lie folded under their parents, out of the charts' sight, unless they are sorted by a metric.
UNFOLDED = {
    "workflowType": "machine_learning",
    "compareRunsMode": "CHART",
    "orderByKey": "metrics.`test/aa`",
}
CHECKPOINTS = {"best": "best", "last": "last", "ema": "EMA", "swa": "SWA"}


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to. Accuracies are fractions, by checkpoint and attack, beside counts and costs."""

    history: list[dict[str, float]]  # a row an epoch
    chosen: dict[str, float]  # the row of the epoch that validation chose
    accuracy: dict[str, dict[str, float]]
    flags: dict[str, str]
    seconds: float  # of training


def title(tags: dict[str, str]) -> str:
    """Method, variant, student and data: the name of a run but for its seed."""
    variant = f"({tags['variant']})" if tags["variant"] else ""
    return " ".join(filter(None, (tags["method"], variant, tags["student"], tags["dataset"])))


def of_run(spec: Spec, tags: dict[str, str], found: Outcome, run_id: str) -> str:
    """The note of a finished run."""
    flags = [f"- **{plain(name)}**: {plain(text)}" for name, text in found.flags.items()]
    aa = found.accuracy["best"].get("aa_n")
    images = f"{found.accuracy['best']['n']:,.0f} test images{f', AutoAttack on {aa:,.0f}' if aa else ''}"
    text = [
        table(found.accuracy),
        f"Accuracy in percent, {images}. {choice(spec, found)}",
        "\n".join(facts(spec, tags, found)),
        "\n".join(["Sanity flags:", "", *flags] if flags else ["No sanity flag was raised."]),
        f"~~~\n{tags['command']}\n~~~",
        " ".join(image(run_id, name) for name in ("curves", "attacks")),
    ]
    return "\n\n".join(text)[:LONGEST]


def of_group(tags: dict[str, str], experiment: str, run_id: str) -> str:
    """The note of a parent run, which is a row of the leaderboard; `experiment`: its id."""
    query = {"searchFilter": f"tags.mlflow.parentRunId = '{run_id}'", **UNFOLDED}
    return (
        f"One row of the leaderboard: {plain(title(tags))}, teacher {plain(tags['teacher'])}. The runs below it are its "
        f"seeds and hold the numbers. [Compare its seeds](#/experiments/{experiment}/runs?{urlencode(query)}), which is "
        f"the filter `{query['searchFilter']}`, or group all runs by the tag `method`."
    )


def plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return "".join(
        f"\\{c}" if c in r"\`*_{}[]()#+!|~" else c for c in html.escape(text, quote=False)
    )


def names(accuracy: dict[str, dict[str, float]]) -> list[str]:
    """The attacks, in the order of evaluation, `worst` last."""
    every = dict.fromkeys(name for found in accuracy.values() for name in found)
    attacks = [
        name
        for name in every
        if name not in ("n", "aa_n", "worst") and not name.startswith("cost/")
    ]
    return [*attacks, "worst"]


def table(accuracy: dict[str, dict[str, float]]) -> str:
    """A line a checkpoint, in percent."""
    columns = names(accuracy)
    lines = [
        f"| checkpoint | {' | '.join(map(plain, columns))} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for name, found in accuracy.items():
        cells = (f"{100 * found[column]:.1f}" if column in found else "-" for column in columns)
        lines.append(f"| {CHECKPOINTS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def choice(spec: Spec, found: Outcome) -> str:
    """How the best checkpoint was chosen."""
    clean, robust = (100 * found.chosen[f"val/{kind}"] for kind in ("clean", "robust"))
    return (
        f"Validation chose epoch {found.chosen['epoch']:.0f}, from 0, of {spec.training.epochs}: "
        f"{clean:.1f} clean and {robust:.1f} robust there."
    )


def facts(spec: Spec, tags: dict[str, str], found: Outcome) -> list[str]:
    teachers = (
        ", ".join(f"{plain(identity)} ({role})" for role, identity in spec.teachers.items())
        or "none"
    )
    evaluation = sum(values.get("cost/eval_seconds", 0.0) for values in found.accuracy.values())
    state = " with uncommitted changes" if tags.get("code_dirty") == "true" else ""
    return [
        f"- Teacher: {teachers}",
        f"- Cost: {found.seconds / 60:.1f} min of training, {evaluation / 60:.1f} min of evaluation",
        f"- Code: {tags.get('code_commit', 'unknown')}{state}",
    ]


def image(run_id: str, name: str) -> str:
    """The figure as MLflow's own server gives it."""
    return (
        f"![{name}](get-artifact?path={quote(f'{FIGURES}/{name}.png', safe='')}&run_uuid={run_id})"
    )


def draw(found: Outcome, folder: Path) -> None:
    """Writes curves.png and attacks.png into `folder`, which is made."""
    from matplotlib.figure import Figure  # without pyplot there is no state to clean up

    folder.mkdir(exist_ok=True)
    figure = Figure(figsize=(9, 3.2), dpi=90)
    accuracy, loss = figure.subplots(1, 2)
    curves(accuracy, "validation accuracy, %", found.history, ("val/clean", "val/robust"), 100)
    accuracy.axvline(found.chosen["epoch"], color="0.6", linestyle=":", label="chosen")
    terms = dict.fromkeys(
        name for row in found.history for name in row if name.startswith("train/")
    )
    curves(loss, "training loss", found.history, terms, 1)
    legends(accuracy, loss)
    figure.subplots_adjust(0.07, 0.15, 0.99, 0.89, wspace=0.18)
    figure.savefig(folder / "curves.png")
    figure = Figure(figsize=(6, 3.2), dpi=90)
    axes = figure.subplots()
    bars(axes, found.accuracy)
    legends(axes)
    figure.subplots_adjust(0.1, 0.2, 0.99, 0.89)
    figure.savefig(folder / "attacks.png")


def legends(*every: Axes) -> None:
    """Above the axes, where no curve can lie."""
    for axes in every:
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 0.99), ncols=6, fontsize=8, frameon=False
        )


def curves(
    axes: Axes, label: str, history: list[dict[str, float]], metrics: Iterable[str], scale: float
) -> None:
    for name in metrics:
        points = [(row["epoch"], scale * row[name]) for row in history if name in row]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 20 else "", label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)


def bars(axes: Axes, accuracy: dict[str, dict[str, float]]) -> None:
    """A group an attack, a bar a checkpoint."""
    attacks, width = names(accuracy)[:-1], 0.8 / len(accuracy)
    for place, (name, found) in enumerate(accuracy.items()):
        heights = [100 * found.get(attack, 0.0) for attack in attacks]
        axes.bar(
            [x + place * width for x in range(len(attacks))],
            heights,
            width,
            label=CHECKPOINTS[name],
        )
    axes.set_xticks(
        [x + 0.4 - width / 2 for x in range(len(attacks))], attacks, rotation=20, parse_math=False
    )
    axes.set_ylabel("test accuracy, %")
