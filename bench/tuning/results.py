"""The results of a study: the best configuration as a file, figures, and its MLflow run."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bench.execution.job import RunContext
from bench.protocol import tuned_config
from bench.protocol.tuned_config import TunedConfig
from bench.system.errors import BenchError
from bench.tracking.store import FINISHED, RunLogger
from bench.tuning.storage import without_password
from bench.tuning.study import count_over, group_attempts, is_over
from bench.tuning.trial import TrialContext

STATES = ("complete", "pruned", "failed")


def best_trials(study: Study, context: TrialContext) -> list[FrozenTrial]:
    """Return the best trial, or the Pareto front by number.

    Raises:
        BenchError: If no trial was completed, or none keeps the clean accuracy.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        reasons = Counter(trial.user_attrs.get("reason", "") for trial in study.trials)
        del reasons[""]
        cause = "".join(f": {reason}" for reason, _ in reasons.most_common(1))
        raise BenchError(f"{context.plan.name}: no trial was completed{cause}")
    feasible = [trial for trial in complete if max(trial.constraints.values(), default=0) <= 0]
    if not feasible:
        raise BenchError(
            f"{context.plan.name}: no trial has a clean accuracy of "
            f"{100 * context.min_clean:.1f} % on the validation images: "
            "lower --min-clean, or give more trials"
        )
    if len(context.plan.objectives) > 1:
        return sorted(study.best_trials, key=lambda trial: trial.number)
    return [max(feasible, key=lambda trial: (trial.value, -trial.number))]


def build_config(
    trial: FrozenTrial, study: Study, context: TrialContext, run: RunContext, teacher: str
) -> TunedConfig:
    """Return a trial's values with their provenance."""
    hyper, training = context.space.split(trial.params)
    spec, plan = context.spec, context.plan
    epochs, epochs_unpruned = count_epochs(study, context)
    provenance: dict[str, Any] = {
        "study": study.study_name,
        "storage": without_password(plan.storage),
        "trial": trial.number,
        "trials": count_over(study),
    }
    for name, value in zip(plan.objectives, trial.values, strict=True):
        provenance[f"val_{name}"] = value
    provenance |= {
        "val_clean": trial.user_attrs["clean"],
        "min_clean": context.min_clean,
        "sampler": plan.sampler,
        "pruner": plan.pruner,
        "search_seed": plan.seed,
        "epochs": epochs,
        "epochs_unpruned": epochs_unpruned,
        "code": run.code.get("code_commit", ""),
    }
    names = (spec.method, spec.suite, spec.dataset, spec.arch, teacher)
    return TunedConfig(*names, hyper, training, provenance)


def last_attempts(study: Study) -> list[FrozenTrial]:
    """Return the last attempt at each trial that is over."""
    return [attempts[-1] for attempts in group_attempts(study).values() if is_over(attempts)]


def count_epochs(study: Study, context: TrialContext) -> tuple[int, int]:
    """Return the epochs that the trials trained, and those that they would have without pruning."""
    epochs = epochs_unpruned = 0
    for trial in last_attempts(study):
        if trial.state != TrialState.FAIL:
            epochs += trial.user_attrs.get("epochs", 0)
            epochs_unpruned += context.spec.training.epochs
    return epochs, epochs_unpruned


def count_states(study: Study) -> Counter[str]:
    """Count the complete, pruned and failed trials, each once however often it was begun."""
    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    return Counter(names.get(trial.state, "failed") for trial in last_attempts(study))


def summarize_study(study: Study, context: TrialContext) -> str:
    """Say in a line how the trials ended and how many epochs pruning saved."""
    counts = count_states(study)
    epochs, epochs_unpruned = count_epochs(study, context)
    text = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    if epochs < epochs_unpruned:
        percent = 100 * (1 - epochs / epochs_unpruned)
        text += f"; {epochs} of {epochs_unpruned} epochs trained, {percent:.0f} % saved"
    return f"{study.study_name}: {text}"


def write_results(
    study: Study, context: TrialContext, run: RunContext, teacher: str, logger: RunLogger
) -> list[Path]:
    """Write a file for each of the best trials and end the study's MLflow run; return the paths.

    A file's name ends with the digest of its values, so no later one takes its place.
    """
    trials = best_trials(study, context)
    paths = []
    for trial in trials:
        config = build_config(trial, study, context, run, teacher)
        name = f"{study.study_name.replace('/', '-')}-{config.digest}.toml"
        paths.append(run.root / "tuned" / name)
        tuned_config.write(paths[-1], config)
    log_results(study, context, logger, trials, paths)
    return paths


def log_results(
    study: Study,
    context: TrialContext,
    logger: RunLogger,
    trials: list[FrozenTrial],
    paths: list[Path],
) -> None:
    """Log counts, best values, a note, files and figures to the study's MLflow run, and end it."""
    counts = count_states(study)
    epochs, epochs_unpruned = count_epochs(study, context)
    logger.metrics({f"trials/{state}": counts[state] for state in STATES})
    logger.metrics({"epochs": epochs, "epochs_unpruned": epochs_unpruned})
    for name, value in zip(context.plan.objectives, trials[0].values, strict=True):
        logger.metrics({f"best/{name}": value})
    logger.tag("mlflow.note.content", format_note(study, context, trials))
    for path in paths:
        logger.file(path, "tuned")
    with tempfile.TemporaryDirectory() as folder:
        for path in draw_figures(study, context, Path(folder)):
            logger.file(path, "figures")
    logger.end(FINISHED, summarize_study(study, context))


def format_note(study: Study, context: TrialContext, trials: list[FrozenTrial]) -> str:
    """Return Markdown for the study's page in MLflow."""
    names = list(trials[0].params)
    columns = [*context.plan.objectives, *names]
    lines = [summarize_study(study, context), "", f"| trial | {' | '.join(columns)} |"]
    lines.append("| ---: " * (len(columns) + 1) + "|")
    for trial in trials:
        cells = [f"{100 * value:.1f} %" for value in trial.values]
        cells += [str(trial.params.get(name)) for name in names]
        lines.append(f"| {trial.number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_figures(study: Study, context: TrialContext, folder: Path) -> list[Path]:
    """Draw the study's figures as PNG files, without those that need more trials."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    paths = []
    for name, plot in list_plots(plots, context.plan.objectives).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plot(study)
        except (ValueError, RuntimeError):
            # Too few trials, or all with one value.
            pyplot.close("all")
            continue
        figure = pyplot.gcf()
        width = 4 * len(figure.axes) if name == "slice" else 9
        figure.set_size_inches(width, 5)
        if name == "parallel":
            # The title lies under the legend.
            figure.axes[0].set_title("")
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120, bbox_inches="tight")
        pyplot.close("all")
    return paths


def list_plots(plots: Any, objectives: tuple[str, ...]) -> dict[str, Callable[[Study], object]]:
    """Return the functions that draw a study as the current figure, by file name."""
    if len(objectives) > 1:
        names = list(objectives)
        return {"pareto": lambda study: plots.plot_pareto_front(study, target_names=names)}
    title = "robust accuracy"
    return {
        "history": lambda study: plots.plot_optimization_history(study, target_name=title),
        "importances": plots.plot_param_importances,
        "parallel": lambda study: plots.plot_parallel_coordinate(study, target_name=title),
        "slice": lambda study: plots.plot_slice(study, target_name=title),
    }
