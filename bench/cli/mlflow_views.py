"""Views in MLflow's pages: the methods of a suite and the trials of a method, side by side.

MLflow keeps a view as a tag of an experiment; views/ has them as MLflow's pages write them.
"""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from bench.tracking.store import TUNING_SUFFIX, TrackingStore
from leaderboards.schema.fields import EXPERIMENT

FOLDER = Path(__file__).with_name("views")


def share_views(store: TrackingStore) -> dict[str, str]:
    """Write the views of every suite and tuned method; return title -> path of the page."""
    paths = {}
    for experiment in sorted(store.client.search_experiments(), key=lambda entry: str(entry.name)):
        suite, experiment_id = experiment.name.removesuffix(TUNING_SUFFIX), experiment.experiment_id
        if not EXPERIMENT.fullmatch(suite):
            continue
        if suite == experiment.name:
            views = {"methods": load_view("methods")}
        else:
            views = trial_views(store, experiment_id)
        for title, view in views.items():
            key = title.replace(" ", "-")
            tag, value = f"mlflow.sharedViewState.{key}", json.dumps(view)
            if experiment.tags.get(tag) != value:
                store.client.set_experiment_tag(experiment_id, tag, value)
            query = {"workflowType": "machine_learning", "viewStateShareKey": key}
            address = urlencode(query | {"compareRunsMode": "CHART"})
            paths[f"{suite}, {title}"] = f"/experiments/{experiment_id}/runs?{address}"
    return paths


def trial_views(store: TrackingStore, experiment_id: str) -> dict[str, Any]:
    """Return for each method its finished trials, the best first, over the values searched."""
    searched: dict[str, set[str]] = {}
    for study in store.client.search_runs([experiment_id], "tags.role = 'study'"):
        names = searched.setdefault(study.data.tags["method"], set())
        for name, text in study.data.params.items():
            # A range is written as JSON, a hyper-parameter that stayed as it was as its value.
            if text.startswith("{"):
                names.add(name.removeprefix("range."))
    views = {}
    for method, names in sorted(searched.items()):
        view = load_view("trials")
        view["searchFilter"] = view["searchFilter"].replace("METHOD", method)
        view["compareRunCharts"][0]["selectedParams"] = sorted(names)
        views[f"trials of {method}"] = view
    return views


def load_view(name: str) -> Any:
    """Read a view from its file."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
