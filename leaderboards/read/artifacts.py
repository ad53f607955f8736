"""Files that belong to a run, read where they lie on this machine or fetched from the store's server."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname


def read(uri: str, name: str) -> bytes:
    """The content of the artifact `name` under a run's artifact URI. Stores fail with exceptions of many kinds."""
    place = urlparse(uri)
    if place.scheme in ("", "file"):
        return (Path(url2pathname(place.path)) / name).read_bytes()
    os.environ.setdefault(
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"
    )  # a bar for each of thousands of small files
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as folder:
        return Path(download_artifacts(artifact_uri=f"{uri}/{name}", dst_path=folder)).read_bytes()
