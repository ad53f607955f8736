"""Views in MLflow's pages: the methods of a suite and the trials of a method, side by side.

MLflow keeps a shared view as a tag of the experiment that the page's address names. The keys of the
views are those of MLflow's pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from bench.tracking.store import TUNING, TrackingStore
from leaderboards.schema.fields import EXPERIMENT

Chart = dict[str, Any]
View = dict[str, Any]

COLUMNS = ("test/clean", "test/pgd20", "test/aa", "val/robust")
SETTING_TAGS = ("student", "teacher", "variant", "seed")
# Hyper-parameters that all methods have.
SHARED = ("training.epochs", "training.lr", "training.weight_decay", "training.awp")
CURVES = ("val/robust", "val/clean", "train/loss")
AXES = ("test/clean", "test/fgsm", "test/pgd20", "test/cw_inf", "test/aa")
OBJECTIVES = ("tune/clean", "tune/robust")


def share_views(store: TrackingStore) -> dict[str, str]:
    """Write the views of every suite and of every method that was tuned.

    Returns:
        What is compared -> path of the page.
    """
    paths = {}
    for experiment in sorted(store.client.search_experiments(), key=lambda entry: str(entry.name)):
        suite = experiment.name.removesuffix(TUNING)
        if not EXPERIMENT.fullmatch(suite):
            continue
        if suite == experiment.name:
            views = {"methods": methods_view()}
        else:
            views = trial_views(store, experiment.experiment_id)
        for title, view in views.items():
            key = title.replace(" ", "-")
            share_view(store, experiment.experiment_id, experiment.tags, key, view)
            paths[f"{suite}, {title}"] = view_path(experiment.experiment_id, key)
    return paths


def share_view(
    store: TrackingStore, experiment_id: str, tags: Mapping[str, str], key: str, view: View
) -> None:
    """Write a view into its tag unless `tags`, those of the experiment, hold it already."""
    tag, value = f"mlflow.sharedViewState.{key}", json.dumps(view)
    if tags.get(tag) != value:
        store.client.set_experiment_tag(experiment_id, tag, value)


def view_path(experiment_id: str, key: str) -> str:
    """Return the path of the page that shows a view."""
    query = {
        "workflowType": "machine_learning",
        "viewStateShareKey": key,
        "compareRunsMode": "CHART",
    }
    return f"/experiments/{experiment_id}/runs?{urlencode(query)}"


def methods_view() -> View:
    """Return finished students by method, with the charts that compare them."""
    charts = [
        parallel_chart(SHARED, AXES),
        scatter_chart("test/clean", "test/aa"),
        *(line_chart(metric) for metric in CURVES),
        {"type": "BAR", "metricKey": "test/aa"},
    ]
    view = runs_view("tags.role = 'student'", "test/aa", COLUMNS, SETTING_TAGS, charts)
    group = {"mode": "tag", "groupByData": "method"}
    view["groupBy"] = {"aggregateFunction": "average", "groupByKeys": [group]}
    return view


def trial_views(store: TrackingStore, experiment_id: str) -> dict[str, View]:
    """Return for each method its finished trials, the best first, and the values searched."""
    views = {}
    for method, names in sorted(searched_names(store, experiment_id).items()):
        charts = [
            parallel_chart(sorted(names), OBJECTIVES),
            scatter_chart(*OBJECTIVES),
            line_chart("val/robust"),
        ]
        condition = f"tags.role = 'trial' and tags.method = '{method}'"
        views[f"trials of {method}"] = runs_view(
            condition, "tune/robust", OBJECTIVES, ("student", "dataset", "state"), charts
        )
    return views


def searched_names(store: TrackingStore, experiment_id: str) -> dict[str, set[str]]:
    """Return the hyper-parameters that the studies of each method searched."""
    searched: dict[str, set[str]] = {}
    for study in store.client.search_runs([experiment_id], "tags.role = 'study'"):
        names = searched.setdefault(study.data.tags["method"], set())
        for name, text in study.data.params.items():
            # A range is written as JSON, a hyper-parameter that stayed as it was as its value.
            if text.startswith("{"):
                names.add(name.removeprefix("range."))
    return searched


def parallel_chart(params: Sequence[str], metrics: Sequence[str]) -> Chart:
    """Return parallel coordinates of hyper-parameters and metrics."""
    return {
        "type": "PARALLEL",
        "selectedParams": params,
        "selectedMetrics": metrics,
        "showAllRuns": True,
    }


def scatter_chart(x_metric: str, y_metric: str) -> Chart:
    """Return a chart of one metric over another."""
    x_axis = {"type": "METRIC", "key": x_metric}
    y_axis = {"type": "METRIC", "key": y_metric}
    return {"type": "SCATTER", "xaxis": x_axis, "yaxis": y_axis}


def line_chart(metric: str) -> Chart:
    """Return a metric's curve over the epochs."""
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
    }


def runs_view(
    condition: str,
    order: str,
    metrics: Sequence[str],
    tags: Sequence[str],
    charts: Sequence[Chart],
) -> View:
    """Return a view of finished runs.

    Args:
        condition: MLflow's filter for the runs.
        order: The metric that orders them, the highest first.
        metrics: Columns of the table.
        tags: More columns.
        charts: What is drawn.
    """
    columns = [f"metrics.`{name}`" for name in metrics] + [f"tags.`{name}`" for name in tags]
    section = "comparison"
    common = {
        "metricSectionId": section,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }
    numbered = [{"uuid": f"chart-{i}", **common, **chart} for i, chart in enumerate(charts)]
    return {
        "searchFilter": f"{condition} and attributes.status = 'FINISHED'",
        "orderByKey": f"metrics.`{order}`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "compareRunCharts": numbered,
        "compareRunSections": [
            {"uuid": section, "name": "Comparison", "display": True, "columns": 2}
        ],
    }
