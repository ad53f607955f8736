"""The results of a study: the best configuration as a file, figures, and its MLflow run."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bench.execution.job import RunContext
from bench.protocol import tuned_config
from bench.protocol.tuned_config import TunedConfig
from bench.system.database import redact_password
from bench.system.errors import BenchError
from bench.tracking.note import NOTE_TAG
from bench.tracking.run_logger import RunLogger
from bench.tuning.study import find_position, group_attempts, is_over
from bench.tuning.trial import TrialContext, format_percent
from leaderboards.schema.fields import FINISHED, Tag, file_name

STATES = ("complete", "pruned", "failed")


def best_trials(study: Study, trial_context: TrialContext) -> list[FrozenTrial]:
    """Return the best trial, or the Pareto front by number. Raises BenchError if there is none."""
    name, complete = trial_context.plan.name, study.get_trials(states=(TrialState.COMPLETE,))
    if not complete:
        reasons = Counter(trial.user_attrs.get("reason", "") for trial in study.trials)
        del reasons[""]
        cause = f": {reasons.most_common(1)[0][0]}" if reasons else ""
        raise BenchError(f"{name}: no trial was completed{cause}")
    feasible = [trial for trial in complete if max(trial.constraints.values(), default=0) <= 0]
    if not feasible:
        floor = f"a clean accuracy of {format_percent(trial_context.min_clean)}"
        advice = "lower --min-clean, or give more trials"
        raise BenchError(f"{name}: no trial has {floor} on the validation images: {advice}")
    if len(trial_context.plan.objectives) > 1:
        return sorted(study.best_trials, key=lambda trial: trial.number)
    # Of equal trials the first.
    return [max(feasible, key=lambda trial: trial.values[0])]


@dataclass(frozen=True)
class Summary:
    """How the trials that are over ended, each counted once however often it was begun."""

    counts: Counter[str]
    epochs: int
    epochs_unpruned: int

    def __str__(self) -> str:
        text = ", ".join(f"{self.counts[state]} {state}" for state in STATES if self.counts[state])
        if self.epochs < self.epochs_unpruned:
            saved = f"{100 * (1 - self.epochs / self.epochs_unpruned):.0f} % saved"
            text += f"; {self.epochs} of {self.epochs_unpruned} epochs trained, {saved}"
        return text


def summarize(study: Study, trial_context: TrialContext) -> Summary:
    """Count the trials by state, their epochs, and the epochs without pruning."""
    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    counts = Counter[str]()
    epochs = 0
    for attempts in group_attempts(study).values():
        if is_over(attempts):
            last = attempts[-1]
            counts[names.get(last.state, "failed")] += 1
            if last.state in names:
                epochs += last.user_attrs.get("epochs", 0)
    epochs_unpruned = (counts["complete"] + counts["pruned"]) * trial_context.spec.training.epochs
    return Summary(counts, epochs, epochs_unpruned)


def build_config(
    study: Study,
    trial: FrozenTrial,
    summary: Summary,
    trial_context: TrialContext,
    commit: str,
    teacher: str,
) -> TunedConfig:
    """Return a trial's values with their provenance."""
    plan, spec = trial_context.plan, trial_context.spec
    storage = redact_password(plan.storage)
    provenance: dict[str, Any] = {"study": plan.name, "storage": storage}
    # Its number would be that of the attempt.
    position = find_position(study, trial.number)
    provenance |= {"trial": position, "trials": summary.counts.total()}
    for name, value in zip(plan.objectives, trial.values, strict=True):
        provenance[f"val_{name}"] = value
    provenance |= {"val_clean": trial.user_attrs["clean"], "min_clean": trial_context.min_clean}
    provenance |= {"sampler": plan.sampler, "pruner": plan.pruner, "search_seed": plan.seed}
    provenance |= {"epochs": summary.epochs, "epochs_unpruned": summary.epochs_unpruned}
    provenance["code"] = commit
    names = (spec.method, spec.suite, spec.dataset, spec.arch, teacher)
    return TunedConfig(*names, *trial_context.space.split(trial.params), provenance)


def write_results(
    study: Study,
    trial_context: TrialContext,
    run_context: RunContext,
    teacher: str,
    logger: RunLogger,
) -> list[Path]:
    """Write a file for each of the best trials, named by its values; end the study's MLflow run."""
    trials, summary = best_trials(study, trial_context), summarize(study, trial_context)
    commit, paths = run_context.code.get(Tag.CODE_COMMIT, ""), []
    for trial in trials:
        config = build_config(study, trial, summary, trial_context, commit, teacher)
        digest = tuned_config.values_digest(config.hyper, config.training)
        name = f"{file_name(trial_context.plan.name)}-{digest}.toml"
        paths.append(run_context.root / "tuned" / name)
        tuned_config.write(paths[-1], config)
    logger.log_results({f"trials/{state}": summary.counts[state] for state in STATES})
    logger.log_results({"epochs": summary.epochs, "epochs_unpruned": summary.epochs_unpruned})
    for name, value in zip(trial_context.plan.objectives, trials[0].values, strict=True):
        logger.log_results({f"best/{name}": value})
    text = f"{trial_context.plan.name}: {summary}"
    logger.set_tags({NOTE_TAG: f"{text}\n\n{trials_table(study, trials, trial_context)}"})
    run_context.store.clear_uploads(logger.run_id)
    for path in paths:
        logger.log_file(path, "tuned")
    with tempfile.TemporaryDirectory() as folder:
        for path in draw_figures(study, trial_context, Path(folder)):
            logger.log_file(path, "figures")
    logger.finish(FINISHED, text)
    return paths


def trials_table(study: Study, trials: list[FrozenTrial], trial_context: TrialContext) -> str:
    """Return a Markdown table of trials with their accuracies and values."""
    columns = ["trial", *trial_context.plan.objectives, *trials[0].params]
    lines = [f"| {' | '.join(columns)} |", "| ---: " * len(columns) + "|"]
    for trial in trials:
        cells = [*map(format_percent, trial.values), *map(str, trial.params.values())]
        position = find_position(study, trial.number)
        lines.append(f"| {position} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_figures(study: Study, trial_context: TrialContext, folder: Path) -> list[Path]:
    """Draw the study's figures as PNG files, without those that need more trials."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    figures: dict[str, Callable[[Study], object]] = {
        "history": partial(plots.plot_optimization_history, target_name="robust accuracy"),
        "importances": plots.plot_param_importances,
        "parallel": partial(plots.plot_parallel_coordinate, target_name="robust accuracy"),
        "slice": partial(plots.plot_slice, target_name="robust accuracy"),
    }
    objectives = list(trial_context.plan.objectives)
    if len(objectives) > 1:
        figures = {"pareto": partial(plots.plot_pareto_front, target_names=objectives)}
    paths = []
    for name, plot in figures.items():
        # Without enough trials, or if all have one value, a plot raises.
        with warnings.catch_warnings(), suppress(ValueError, RuntimeError):
            warnings.simplefilter("ignore")
            plot(study)
            figure = pyplot.gcf()
            figure.set_size_inches(4 * len(figure.axes) if name == "slice" else 9, 5)
            if name == "parallel":
                # The title lies under the legend.
                figure.axes[0].set_title("")
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
            paths.append(folder / f"{name}.png")
        pyplot.close("all")
    return paths
