"""Open MLflow's own pages of the runs of a store."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from bench.cli.parsing import Command
from bench.protocol.options import StoreFolder, Switch, option
from bench.system.errors import BenchError, UsageError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
HEALTH_INTERVAL = 0.5  # seconds between questions to a server that starts


@dataclass(frozen=True, kw_only=True)
class UiOptions:
    """Open MLflow's own pages of the runs, for this machine alone unless --host is given."""

    store: StoreFolder = Path("runs")
    host: Annotated[str, option("NAME", "0.0.0.0 lets others in, without a password")] = "127.0.0.1"
    port: Annotated[int, option("N")] = 5000
    open: Annotated[Switch, option(text="open the first view in a browser when it is ready")] = (
        False
    )


def serve_record(options: UiOptions) -> int:
    """Run MLflow's server on the record until it is interrupted."""
    from bench.cli.mlflow_views import share_views
    from bench.system.database import redact_password
    from bench.tracking.store import TrackingStore, store_exists, tracking_uri

    uri = tracking_uri(options.store)
    if uri.startswith(("http://", "https://")):
        print(f"the record is kept by the server {redact_password(uri)}: open it there")
        return 0
    if not store_exists(options.store):
        raise BenchError(
            f"no record yet in {str(options.store)!r}: there is no {redact_password(uri)}"
        )
    check_port(options.host, options.port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{options.port}"
    views = share_views(TrackingStore(options.store))
    for name, path in views.items():
        print(f"{name} side by side: {address}/#{path}")
    shown = f"{address} shows {redact_password(uri)}"
    print(f"{shown}: starting, about 10 s ...; Ctrl-C ends it", flush=True)
    page = f"{address}/#{next(iter(views.values()), '')}"
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1"]
    command += ["--host", options.host, "--port", str(options.port)]
    command += access_options(options.host, options.port)
    # Everyone here can read the words of a command, and the address may have a password.
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}
    return run_server(command, partial(announce, address, page, options.open), environment)


def access_options(host: str, port: int) -> list[str]:
    """Return the options of MLflow's server that let browsers in by the names of a host.

    Without them it refuses what a page asks of it, unless it was opened as localhost.
    """
    # An address that is none in particular: browsers use this machine's own.
    names = [host] if host not in ("0.0.0.0", "::") else machine_names()
    names = [f"[{name}]" if ":" in name else name for name in [*names, *LOCAL_NAMES]]
    hosts = [f"{name}{ending}" for name in names for ending in ("", f":{port}")]
    origins = [f"http://{name}:{port}" for name in names]
    return ["--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", ",".join(origins)]


def machine_names() -> list[str]:
    """Return the names and addresses by which others know this machine."""
    names = [socket.gethostname(), socket.getfqdn()]
    # The address of the way out; nothing is sent.
    for family, other in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect((other, 9))
            names.append(way.getsockname()[0])
    return names


def announce(address: str, page: str, browse: bool) -> None:
    """Wait until the server answers; print its page, and open it in a browser if that is wanted."""
    # A proxy does not know this machine's own addresses.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        with suppress(OSError), opener.open(f"{address}/health", timeout=10):
            break
        time.sleep(HEALTH_INTERVAL)
    print(f"ready: {page}", flush=True)
    if browse and not webbrowser.open(page):
        print("no browser could be opened", file=sys.stderr)


def run_server(
    command: Sequence[str],
    when_started: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a server that ends with this process, even if that is killed; return its exit code.

    `when_started` runs beside it, in a thread that ends with this process. environment: of the
    server, None for that of this process.
    """
    # The server starts processes of its own, which it would leave behind: the whole group ends
    # when the shell cannot read any more, because this process has closed the pipe or died.
    script = "read _; kill -s TERM 0"
    guard = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, process_group=0)
    server = subprocess.Popen(command, process_group=guard.pid, env=environment)
    threading.Thread(target=when_started, daemon=True).start()
    try:
        return server.wait()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
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
