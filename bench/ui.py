"""The verb `ui`: MLflow's own server on the record."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

from bench import options
from bench.errors import BenchError, UsageError
from bench.track import Store, tracking_uri


def ui(given: options.Ui) -> int:
    """Runs MLflow's server on the record until it is interrupted."""
    uri = tracking_uri(given.store)
    if uri.startswith(("http://", "https://")):
        print(f"the record is kept by the server {uri}: open it there")
        return 0
    if not given.store.exists():
        raise BenchError(f"no record yet in {str(given.store)!r}")
    check_port(given.host, given.port)
    Store(given.store)
    print(f"http://{given.host}:{given.port} shows {uri}; Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri", uri]
    server = subprocess.Popen([*command, "--host", given.host, "--port", str(given.port)], start_new_session=True)
    try:
        return server.wait()
    finally:  # the server starts others, which a signal to it alone would leave behind
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def check_port(host: str, port: int) -> None:
    """Raises UsageError for an address that cannot be listened on."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise UsageError(f"--host {host} --port {port}: {getattr(error, 'strerror', '') or error}") from error
