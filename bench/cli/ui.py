"""The verb `ui`: MLflow's own server on the record, with a view of each experiment that compares methods at once."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from bench.cli import options
from bench.system.errors import BenchError, UsageError
from bench.tracking.store import TUNING, TrackingStore, store_exists, tracking_uri
from leaderboards.schema.fields import EXPERIMENT

COLUMNS = ("test/clean", "test/pgd20", "test/aa", "val/robust")
SETTING = ("student", "teacher", "variant", "seed")
SHARED = (
    "training.epochs",
    "training.lr",
    "training.weight_decay",
    "training.awp",
)  # hyper-parameters of all methods
CURVES = ("val/robust", "val/clean", "train/loss")
AXES = ("test/clean", "test/fgsm", "test/pgd20", "test/cw_inf", "test/aa")
JUDGED = ("tune/clean", "tune/robust")  # what a trial is judged by


def ui(given: options.Ui) -> int:
    """Runs MLflow's server on the record until it is interrupted."""
    uri = tracking_uri(given.store)
    if uri.startswith(("http://", "https://")):
        print(f"the record is kept by the server {uri}: open it there")
        return 0
    if not store_exists(given.store):
        raise BenchError(f"no record yet in {str(given.store)!r}: there is no {uri}")
    check_port(given.host, given.port)
    place = f"http://{f'[{given.host}]' if ':' in given.host else given.host}:{given.port}"
    lines = [
        f"{name} side by side: {place}/#{path}"
        for name, path in views(TrackingStore(given.store)).items()
    ]
    print("\n".join([f"{place} shows {uri}; Ctrl-C ends it", *lines]), flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri", uri]
    return serve([*command, "--host", given.host, "--port", str(given.port)])


def serve(command: Sequence[str]) -> int:
    """Runs a server, and ends it and all that it starts when this process ends, killed or not; returns its exit code."""
    script = "read _; kill -s TERM 0"  # the whole group: the server starts others, which it would leave behind
    end = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, process_group=0)
    server = subprocess.Popen(command, process_group=end.pid)
    try:
        return server.wait()
    finally:
        end.communicate()  # closes what it reads, as the death of this process does
        server.wait()


def views(store: TrackingStore) -> dict[str, str]:
    """What is compared -> the page that does: the methods of every suite, the trials of every method that was tuned.

    MLflow keeps a shared view as a tag of the experiment that the page's address names.
    """
    found = {}
    for experiment in sorted(store.client.search_experiments(), key=lambda one: str(one.name)):
        suite, place = experiment.name.removesuffix(TUNING), experiment.experiment_id
        if not EXPERIMENT.fullmatch(suite):
            continue
        for what, view in (
            {"methods": methods()} if suite == experiment.name else trials(store, place)
        ).items():
            key = what.replace(" ", "-")
            tag, value = f"mlflow.sharedViewState.{key}", json.dumps(view)
            if experiment.tags.get(tag) != value:
                store.client.set_experiment_tag(place, tag, value)
            query = {
                "workflowType": "machine_learning",
                "viewStateShareKey": key,
                "compareRunsMode": "CHART",
            }
            found[f"{suite}, {what}"] = f"/experiments/{place}/runs?{urlencode(query)}"
    return found


def methods() -> dict[str, Any]:
    """Finished students by method, with the charts that compare them."""
    clean, aa = ({"type": "METRIC", "key": name} for name in ("test/clean", "test/aa"))
    charts: list[dict[str, Any]] = [
        {
            "type": "PARALLEL",
            "selectedParams": SHARED,
            "selectedMetrics": AXES,
            "showAllRuns": True,
        },
        {"type": "SCATTER", "xaxis": clean, "yaxis": aa},
        *map(line, CURVES),
        {"type": "BAR", "metricKey": "test/aa"},
    ]
    by = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "method"}]}
    return page("tags.role = 'student'", "test/aa", COLUMNS, SETTING, charts) | {"groupBy": by}


def trials(store: TrackingStore, experiment: str) -> dict[str, dict[str, Any]]:
    """For each method its finished trials, the best first, with parallel coordinates over what was searched."""
    searched: dict[str, set[str]] = {}
    for study in store.client.search_runs([experiment], "tags.role = 'study'"):
        ranges = (
            study.data.params.items()
        )  # the text of a parameter that stayed as it was is its value
        names = {name.removeprefix("range.") for name, text in ranges if text.startswith("{")}
        searched.setdefault(study.data.tags["method"], set()).update(names)
    clean, robust = ({"type": "METRIC", "key": name} for name in JUDGED)
    found = {}
    for method, names in sorted(searched.items()):
        charts: list[dict[str, Any]] = [
            {
                "type": "PARALLEL",
                "selectedParams": sorted(names),
                "selectedMetrics": JUDGED,
                "showAllRuns": True,
            },
            {"type": "SCATTER", "xaxis": clean, "yaxis": robust},
            line("val/robust"),
        ]
        chosen = f"tags.role = 'trial' and tags.method = '{method}'"
        found[f"trials of {method}"] = page(
            chosen, "tune/robust", JUDGED, ("student", "dataset", "state"), charts
        )
    return found


def line(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
    }


def page(
    chosen: str,
    order: str,
    metrics: Sequence[str],
    tags: Sequence[str],
    charts: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Finished runs under a condition; the names are those of MLflow's pages."""
    common = {
        "metricSectionId": "comparison",
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }
    return {
        "searchFilter": f"{chosen} and attributes.status = 'FINISHED'",
        "orderByKey": f"metrics.`{order}`",
        "orderByAsc": False,
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in metrics),
            *(f"tags.`{name}`" for name in tags),
        ],
        "compareRunCharts": [
            {"uuid": f"chart-{place}", **common, **chart} for place, chart in enumerate(charts)
        ],
        "compareRunSections": [
            {"uuid": "comparison", "name": "Comparison", "display": True, "columns": 2}
        ],
    }


def check_port(host: str, port: int) -> None:
    """Raises UsageError for an address that cannot be listened on, and for an empty one, which is every network's."""
    if not host or not port:
        raise UsageError(
            f"--host {host!r} --port {port}: name an address, and a port from 1 to 65535"
        )
    try:
        with socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ):
            pass
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--host {host} --port {port}: {getattr(error, 'strerror', '') or error}"
        ) from error
