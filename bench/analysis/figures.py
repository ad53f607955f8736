"""Figures of an analysed run for its page in MLflow, drawn from its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leaderboards.schema.analysis import (
    ADVERSARIAL,
    BY_EPS,
    BY_STEPS,
    CLEAN,
    CORRELATION,
    LOSS_ATTACK,
    LOSS_RANDOM,
    TSNE,
    VIEWS,
    Analysis,
)
from leaderboards.schema.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
PANEL = 3.2  # inches


def draw(record: Record, folder: Path) -> None:
    """Draw the figures of a record's analysis as PNG into a new folder."""
    folder.mkdir(parents=True)
    assert record.analysis
    for name, figure in figures_of(record.analysis):
        figure.savefig(folder / f"{name}.png", dpi=DPI)


def figures_of(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """Yield (name, figure) of what the analysis holds."""
    if any(name.startswith(CORRELATION) for name in analysis.matrices):
        yield "correlations", draw_correlations(analysis.matrices)
    if any(name.startswith(TSNE) for name in analysis.points):
        yield "tsne", draw_embedding(analysis.points)
    lines = [name for name in (BY_EPS, BY_STEPS, LOSS_ATTACK) if name in analysis.lines]
    if lines:
        yield "loss-surface", draw_lines(analysis.lines)


def draw_correlations(matrices: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draw the classes' correlations of student and teacher and their difference, both views."""
    figure = blank_figure(3 * PANEL, 2 * PANEL)
    axes = figure.subplots(2, 3, squeeze=False)
    for row, view in enumerate(VIEWS):
        panels = {
            owner: np.array(matrices[f"{CORRELATION}/{owner}/{view}"])
            for owner in ("student", "teacher")
            if f"{CORRELATION}/{owner}/{view}" in matrices
        }
        if len(panels) == 2:
            panels["difference"] = panels["student"] - panels["teacher"]
        for panel, owner in zip(axes[row], ("student", "teacher", "difference"), strict=True):
            panel.set_title(f"{owner}, {VIEWS[view]}")
            if owner not in panels:
                panel.axis("off")
                continue
            image = panel.imshow(panels[owner], cmap="RdBu_r", vmin=-1, vmax=1)
            panel.set(xlabel="class", ylabel="class")
            figure.colorbar(image, ax=panel, shrink=0.8)
    return figure


def draw_embedding(points: Mapping[str, Sequence[tuple[float, float, int]]]) -> Figure:
    """Draw t-SNE's points of clean images and adversarial examples, coloured by class."""
    figure = blank_figure(2 * PANEL, PANEL)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, view in zip(axes, (CLEAN, ADVERSARIAL), strict=True):
        x, y, label = zip(*points.get(f"{TSNE}/{view}", ()) or [(0, 0, 0)], strict=True)
        panel.scatter(x, y, c=label, cmap="tab10", s=8)
        panel.set(title=VIEWS[view], xticks=[], yticks=[])
    return figure


def draw_lines(lines: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Draw accuracy against eps and steps, and the loss along two directions."""
    figure = blank_figure(3 * PANEL, PANEL)
    by_eps, by_steps, loss = figure.subplots(1, 3)
    draw_line(by_eps, lines.get(BY_EPS, ()))
    by_eps.set(xlabel="eps, of the suite's", ylabel="accuracy", ylim=(0, 1), title="PGD-20")
    draw_line(by_steps, lines.get(BY_STEPS, ()))
    by_steps.set(xlabel="steps", xscale="log", ylim=(0, 1), title="the suite's eps")
    draw_line(loss, lines.get(LOSS_ATTACK, ()), "attack")
    draw_line(loss, lines.get(LOSS_RANDOM, ()), "noise")
    loss.set(xlabel="share of the perturbation", ylabel="cross-entropy", title="loss along")
    loss.legend()
    return figure


def draw_line(axes: Axes, pairs: Sequence[tuple[float, float]], label: str = "") -> None:
    """Draw pairs (x, y) as a line; nothing without any."""
    if pairs:
        x, y = zip(*pairs, strict=True)
        axes.plot(x, y, marker="o", markersize=3, label=label or None)


def blank_figure(width: float, height: float) -> Figure:
    """Return a figure of some inches whose parts keep apart."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
