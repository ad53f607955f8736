"""What a study found: the best configuration as a file, its figures, its MLflow run."""

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
from bench.tracking.run_logger import FINISHED, RunLogger
from bench.tuning import storage
from bench.tuning import study as study_module
from bench.tuning.trial import Task


def best(study: Study, task: Task) -> list[FrozenTrial]:
    """The best trial, or the Pareto front; by number. Raises BenchError where no trial keeps the clean accuracy."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        reasons = Counter(
            trial.user_attrs["reason"] for trial in study.trials if "reason" in trial.user_attrs
        )
        said = "".join(f": {reason}" for reason, _ in reasons.most_common(1))
        raise BenchError(f"{task.plan.name}: no trial was completed{said}")
    feasible = [
        trial for trial in complete if all(value <= 0 for value in trial.constraints.values())
    ]
    if not feasible:
        raise BenchError(
            f"{task.plan.name}: no trial has a clean accuracy of {100 * task.floor:.1f} % on the validation images: "
            "lower --min-clean, or give more trials"
        )
    if len(task.plan.objectives) > 1:
        return sorted(study.best_trials, key=lambda trial: trial.number)
    return [max(feasible, key=lambda trial: (trial.value, -trial.number))]


def configuration(
    trial: FrozenTrial, study: Study, task: Task, shop: RunContext, teacher: str
) -> TunedConfig:
    """A trial's values with where they come from."""
    hyper, training = task.space.split(trial.params)
    spec, (spent, whole) = task.spec, epochs(study, task)
    provenance = {
        "study": study.study_name,
        "storage": storage.public(task.plan.place),
        "trial": trial.number,
        "trials": study_module.done(study),
        **dict(zip((f"val_{name}" for name in task.plan.objectives), trial.values, strict=True)),
        "val_clean": trial.user_attrs["clean"],
        "min_clean": task.floor,
        "sampler": task.plan.sampler,
        "pruner": task.plan.pruner,
        "search_seed": task.plan.seed,
        "epochs": spent,
        "epochs_unpruned": whole,
        "code": shop.code.get("code_commit", ""),
    }
    return TunedConfig(
        spec.method, spec.suite, spec.dataset, spec.arch, teacher, hyper, training, provenance
    )


def results(study: Study) -> list[FrozenTrial]:
    """The last attempt at each trial that is over."""
    return [
        tries[-1] for tries in study_module.attempts(study).values() if study_module.over(tries)
    ]


def epochs(study: Study, task: Task) -> tuple[int, int]:
    """Epochs trained by the trials that are over, and how many it would have been without pruning."""
    counted = [
        trial for trial in results(study) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    return sum(trial.user_attrs.get("epochs", 0) for trial in counted), len(
        counted
    ) * task.spec.training.epochs


def states(study: Study) -> Counter[str]:
    """How many trials are complete, pruned and failed, each counted once however often it was begun."""
    return Counter(trial.state.name.lower().replace("fail", "failed") for trial in results(study))


def summary(study: Study, task: Task) -> str:
    """A line for people."""
    counts, (spent, whole) = states(study), epochs(study, task)
    text = ", ".join(
        f"{counts[name]} {name}" for name in ("complete", "pruned", "failed") if counts[name]
    )
    saved = (
        f"; {spent} of {whole} epochs trained, {100 * (1 - spent / whole):.0f} % saved"
        if spent < whole
        else ""
    )
    return f"{study.study_name}: {text}{saved}"


def write(
    study: Study, task: Task, shop: RunContext, teacher: str, record: RunLogger
) -> list[Path]:
    """Writes a file for each of the best trials, ends the study's MLflow run with files and figures; returns the paths.

    A file's name ends with the digest of its values, so that a later one does not take its place.
    """
    chosen, paths = best(study, task), []
    for trial in chosen:
        found = configuration(trial, study, task, shop, teacher)
        path = shop.root / "tuned" / f"{study.study_name.replace('/', '-')}-{found.digest}.toml"
        tuned_config.write(path, found)
        paths.append(path)
    publish(study, task, record, chosen, paths)
    return paths


def publish(
    study: Study, task: Task, record: RunLogger, chosen: list[FrozenTrial], paths: list[Path]
) -> None:
    """The study's MLflow run: counts, best values, a note, the files, the figures that can be drawn."""
    counts, (spent, whole) = states(study), epochs(study, task)
    record.log_metrics(
        {f"trials/{name}": counts[name] for name in ("complete", "pruned", "failed")}
    )
    record.log_metrics({"epochs": spent, "epochs_unpruned": whole})
    for name, value in zip(task.plan.objectives, chosen[0].values, strict=True):
        record.log_metrics({f"best/{name}": value})
    record.set_tags({"mlflow.note.content": note(study, task, chosen)})
    for path in paths:
        record.log_file(path, "tuned")
    with tempfile.TemporaryDirectory() as folder:
        for path in draw(study, task, Path(folder)):
            record.log_file(path, "figures")
    record.finish(FINISHED, summary(study, task))


def note(study: Study, task: Task, chosen: list[FrozenTrial]) -> str:
    """Markdown for the run's page in MLflow."""
    names = list(chosen[0].params)
    lines = [summary(study, task), "", f"| trial | {' | '.join([*task.plan.objectives, *names])} |"]
    lines += [f"| ---: | {' | '.join('---:' for _ in [*task.plan.objectives, *names])} |"]
    for trial in chosen:
        cells = [f"{100 * value:.1f} %" for value in trial.values] + [
            f"{trial.params.get(name)}" for name in names
        ]
        lines.append(f"| {trial.number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(study: Study, task: Task, folder: Path) -> list[Path]:
    """The study's figures as PNG files; those for which its trials do not suffice are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    found = []
    for name, plot in figures(plots, task.plan.objectives).items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plot(study)
        except (ValueError, RuntimeError):  # too few trials, or all with one value
            pyplot.close("all")
            continue
        figure = pyplot.gcf()
        figure.set_size_inches(4 * len(figure.axes) if name == "slice" else 9, 5)
        if name == "parallel":
            figure.axes[0].set_title("")  # it lies under the legend
        found.append(folder / f"{name}.png")
        figure.savefig(found[-1], dpi=120, bbox_inches="tight")
        pyplot.close("all")
    return found


def figures(plots: Any, objectives: tuple[str, ...]) -> dict[str, Callable[[Study], object]]:
    """Name -> function that draws it as the current figure."""
    if len(objectives) > 1:
        return {
            "pareto": lambda study: plots.plot_pareto_front(study, target_names=list(objectives))
        }
    return {
        "history": lambda study: plots.plot_optimization_history(
            study, target_name="robust accuracy"
        ),
        "importances": lambda study: plots.plot_param_importances(study),
        "parallel": lambda study: plots.plot_parallel_coordinate(
            study, target_name="robust accuracy"
        ),
        "slice": lambda study: plots.plot_slice(study, target_name="robust accuracy"),
    }
