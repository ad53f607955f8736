"""The verb `ui`: MLflow's own server on the record, with a view of each experiment that compares methods at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from bench import options
from bench.errors import BenchError, UsageError
from bench.track import Store, tracking_uri
from leaderboards.fields import EXPERIMENT

VIEW = "methods"  # what an address calls it
COLUMNS = ("test/clean", "test/pgd20", "test/aa", "val/robust")
SETTING = ("student", "teacher", "variant", "seed")
SHARED = ("training.epochs", "training.lr", "training.weight_decay", "training.awp")  # hyper-parameters of all methods
CURVES = ("val/robust", "val/clean", "train/loss")
AXES = ("test/clean", "test/fgsm", "test/pgd20", "test/cw_inf", "test/aa")


def ui(given: options.Ui) -> int:
    """Runs MLflow's server on the record until it is interrupted."""
    uri = tracking_uri(given.store)
    if uri.startswith(("http://", "https://")):
        print(f"the record is kept by the server {uri}: open it there")
        return 0
    if not os.environ.get("MLFLOW_TRACKING_URI") and not given.store.exists():
        raise BenchError(f"no record yet in {str(given.store)!r}")
    check_port(given.host, given.port)
    place = f"http://{given.host}:{given.port}"
    lines = [f"{name}, methods side by side: {place}/#{path}" for name, path in views(Store(given.store)).items()]
    print("\n".join([f"{place} shows {uri}; Ctrl-C ends it", *lines]), flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri", uri]
    server = subprocess.Popen([*command, "--host", given.host, "--port", str(given.port)], start_new_session=True)
    try:
        return server.wait()
    finally:  # the server starts others, which a signal to it alone would leave behind
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def views(store: Store) -> dict[str, str]:
    """Experiment -> the page of its view, for every suite of the record; what has no view yet is given one.

    MLflow keeps a shared view as a tag of the experiment that the page's address names.
    """
    found = {}
    for experiment in store.client.search_experiments():
        if EXPERIMENT.fullmatch(experiment.name):
            tag, value = f"mlflow.sharedViewState.{VIEW}", json.dumps(view())
            if experiment.tags.get(tag) != value:
                store.client.set_experiment_tag(experiment.experiment_id, tag, value)
            query = urlencode(
                {"workflowType": "machine_learning", "viewStateShareKey": VIEW, "compareRunsMode": "CHART"}
            )
            found[experiment.name] = f"/experiments/{experiment.experiment_id}/runs?{query}"
    return found


def view() -> dict[str, Any]:
    """Finished students by method, with the charts that compare them; the names are those of MLflow's pages."""
    clean, aa = ({"type": "METRIC", "key": name} for name in ("test/clean", "test/aa"))
    charts: tuple[dict[str, Any], ...] = (
        {"type": "PARALLEL", "selectedParams": SHARED, "selectedMetrics": AXES, "showAllRuns": True},
        {"type": "SCATTER", "xaxis": clean, "yaxis": aa},
        *({"type": "LINE", "metricKey": name, "selectedMetricKeys": [name], "lineSmoothness": 0} for name in CURVES),
        {"type": "BAR", "metricKey": "test/aa"},
    )
    common = {"metricSectionId": "comparison", "runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    return {
        "searchFilter": "tags.role = 'student' and attributes.status = 'FINISHED'",
        "orderByKey": "metrics.`test/aa`",
        "orderByAsc": False,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "method"}]},
        "selectedColumns": [*(f"metrics.`{name}`" for name in COLUMNS), *(f"tags.`{name}`" for name in SETTING)],
        "compareRunCharts": [{"uuid": f"chart-{place}", **common, **chart} for place, chart in enumerate(charts)],
        "compareRunSections": [{"uuid": "comparison", "name": "Comparison", "display": True, "columns": 2}],
    }


def check_port(host: str, port: int) -> None:
    """Raises UsageError for an address that cannot be listened on."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {host} --port {port}: {getattr(error, 'strerror', '') or error}") from error
