"""Open MLflow's own pages on the record."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bench.cli.parsing import Command
from bench.protocol.options import StoreFolder, option
from bench.system.errors import BenchError, UsageError


@dataclass(frozen=True, kw_only=True)
class UiOptions:
    """Open MLflow's own pages on the record, for this machine alone unless --host is given."""

    store: StoreFolder = Path("runs")
    host: Annotated[str, option("NAME", "0.0.0.0 lets others in, without a password")] = "127.0.0.1"
    port: Annotated[int, option("N")] = 5000


def serve_record(options: UiOptions) -> int:
    """Run MLflow's server on the record until it is interrupted."""
    from bench.cli.mlflow_views import share_views
    from bench.tracking.store import TrackingStore, store_exists, tracking_uri

    uri = tracking_uri(options.store)
    if uri.startswith(("http://", "https://")):
        print(f"the record is kept by the server {uri}: open it there")
        return 0
    if not store_exists(options.store):
        raise BenchError(f"no record yet in {str(options.store)!r}: there is no {uri}")
    check_port(options.host, options.port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{options.port}"
    lines = [f"{address} shows {uri}; Ctrl-C ends it"]
    for name, path in share_views(TrackingStore(options.store)).items():
        lines.append(f"{name} side by side: {address}/#{path}")
    print("\n".join(lines), flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri", uri]
    return run_server([*command, "--host", options.host, "--port", str(options.port)])


def run_server(command: Sequence[str]) -> int:
    """Run a server that ends with this process, even if that is killed; return its exit code."""
    # The server starts processes of its own, which it would leave behind: the whole group ends
    # when the shell cannot read any more, because this process has closed the pipe or died.
    script = "read _; kill -s TERM 0"
    guard = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, process_group=0)
    server = subprocess.Popen(command, process_group=guard.pid)
    try:
        return server.wait()
    finally:
        guard.communicate()
        server.wait()


def check_port(host: str, port: int) -> None:
    """Raise UsageError for an address that the server cannot listen on."""
    # Without a host the server would listen on every network.
    if not host or not port:
        rule = "name an address, and a port from 1 to 65535"
        raise UsageError(f"--host {host!r} --port {port}: {rule}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", "") or error
        raise UsageError(f"--host {host} --port {port}: {reason}") from error


COMMAND = Command(UiOptions, serve_record)
