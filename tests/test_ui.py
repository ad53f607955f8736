"""MLflow's server on the record: it answers with the record's runs, for this machine alone, and ends when told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from bench import cli
from bench.errors import BenchError, UsageError
from bench.track import Store


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.e2e
def test_it_serves_the_record(tmp_path: Path) -> None:
    Store(tmp_path / "runs").experiment("digits@3")
    port = free()
    clean = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "bench", "ui", "--port", str(port)]
    running = subprocess.Popen(command, cwd=tmp_path, env=clean, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout
        assert f"http://127.0.0.1:{port} shows sqlite" in running.stdout.readline()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search",
            data=b'{"max_results": 10}',
            headers={"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = json.load(urllib.request.urlopen(asked, timeout=10))
                break
            except OSError:
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        assert "digits@3" in {experiment["name"] for experiment in answer["experiments"]}
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 130
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10)


def test_a_port_in_use_or_no_record_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(BenchError, match="no record yet in 'runs'"):
        cli.dispatch(["ui"])
    Path("runs").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="in use"):
        cli.dispatch(["ui", "--port", str(taken.getsockname()[1])])
    with pytest.raises(UsageError, match="65535"):
        cli.dispatch(["ui", "--port", "99999"])


def test_a_server_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert cli.dispatch(["ui"]) == 0
    assert "kept by the server http://somewhere:5000" in capsys.readouterr().out
