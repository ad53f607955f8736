"""Files that belong to a run, read from this machine or fetched from the store's server."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from leaderboards.read.record_files import is_record_uri, read_record_uri


def read_artifact(uri: str, name: str) -> bytes:
    """Read an artifact under a run's artifact URI. Stores raise exceptions of many kinds."""
    parts = urlparse(uri)
    if parts.scheme in ("", "file"):
        return (Path(url2pathname(parts.path)) / name).read_bytes()
    # MLflow would draw a bar for each of thousands of small files.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as folder:
        return Path(download_artifacts(artifact_uri=f"{uri}/{name}", dst_path=folder)).read_bytes()


def read_environment(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return device, versions and data of a run, a row of store.collect's frame.

    {} where they are missing or damaged.
    """
    uri = str(run["artifact_uri"])
    try:
        if is_record_uri(uri):
            return read_record_uri(uri).environment
        environment = json.loads(read_artifact(uri, "environment.json"))
    # Stores and damaged files fail in more ways than can be named.
    except Exception:
        return {}
    return environment if isinstance(environment, dict) else {}
