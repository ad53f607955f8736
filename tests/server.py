"""A real PostgreSQL server in a temporary folder, on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BINARIES = [Path(program).parent for program in (shutil.which("initdb"),) if program] + sorted(
    Path("/usr/lib/postgresql").glob("*/bin")
)


def installed() -> bool:
    return any((folder / "initdb").exists() for folder in BINARIES)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty database; the server is stopped and its folder removed afterwards."""
    binaries = next(folder for folder in BINARIES if (folder / "initdb").exists())
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        port = free_port()

        def run(program: str, *words: str) -> None:
            command = [str(binaries / program), *words]
            subprocess.run(command, check=True, cwd=folder, user=user, stdout=subprocess.DEVNULL)

        run("initdb", "-D", str(folder / "data"), "-U", "bench", "--auth=trust", "-N")
        settings = (
            f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        )
        run(
            "pg_ctl",
            "-D",
            str(folder / "data"),
            "-w",
            "-l",
            str(folder / "log"),
            "-o",
            settings,
            "start",
        )
        try:
            yield f"postgresql://bench:secret@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop")
