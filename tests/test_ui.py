"""MLflow's server on the record: it answers with the record's runs, for this machine alone, and ends when told to.

A real browser looks at its pages.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import records
import test_leaderboards
from bench.cli.ui import AXES, JUDGED, SHARED, check_port, serve
from test_leaderboards import fill

import leaderboards
from bench import cli
from bench.system.errors import BenchError, UsageError
from bench.tracking.run_logger import FINISHED
from bench.tracking.store import TUNING, TrackingStore
from leaderboards.read import store

if TYPE_CHECKING:
    from playwright.sync_api import Page

# MLflow's own: a request of its page that its server does not know, and what Chromium then says; a harmless notice;
# parallel coordinates drawn before their width is known, on a slow machine: they are drawn again, which is checked
OWN = re.compile(
    r"/users/current$|status of 404|ResizeObserver|<\w+> attribute \w+: Expected .*NaN"
)
DRAWN = """() => {
  const axes = [...document.querySelectorAll('.parcoords .dimension')].map(axis => axis.getAttribute('transform'))
  return axes.length == %d && axes.every(place => /^translate\\(\\d/.test(place))
}"""


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def served(folder: Path, views: int = 1) -> Iterator[list[str]]:
    """`bench ui` on the record of `folder`: the lines that it prints, the first with its address, the others with views."""
    port = free()
    clean = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "bench", "ui", "--port", str(port)]
    running = subprocess.Popen(command, cwd=folder, env=clean, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout
        lines = [running.stdout.readline() for _ in range(1 + views)]
        assert f"http://127.0.0.1:{port} shows sqlite" in lines[0]
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10)
                break
            except OSError:
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield lines
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 130
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10)


@pytest.mark.e2e
def test_it_serves_the_record(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    fill(test_leaderboards.Store(uri, tmp_path / "runs" / "artifacts"))
    runs = store.collect(uri)
    with served(tmp_path) as lines:
        place = lines[0].split()[0]
        pd.testing.assert_frame_equal(store.collect(place), runs)
        assert store.read_curves(place, runs) == store.read_curves(uri, runs)
        capfd.readouterr()
        leaderboards.write(place, tmp_path / "served")
        assert capfd.readouterr() == ("", "")
    leaderboards.write(uri, tmp_path / "read")
    assert (tmp_path / "served" / "leaderboard.md").read_text() == (
        tmp_path / "read" / "leaderboard.md"
    ).read_text()


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a headless browser."""
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with (
        api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=flags) as browser,
    ):
        yield browser.new_page(viewport={"width": 1500, "height": 1000})


def search(store: TrackingStore) -> None:
    """Two searches as `bench tune` records them, one of three trials and one of one."""
    for method, trials in (("rslad", 3), ("kd", 1)):
        tags = {"study": method, "method": method}
        whole = store.open_run(
            f"digits@3{TUNING}", method, tags | {"role": "study"}, "", ("study", "role")
        )
        whole.log_params({"range.alpha": '{"name": "FloatDistribution"}', "range.tau": "1.0"})
        whole.finish(FINISHED)
        for number in range(trials):
            own = tags | {"role": "trial", "trial": f"{number}"}
            trial = store.open_run(
                f"digits@3{TUNING}",
                f"{method} trial {number}",
                own,
                whole.run_id,
                ("study", "trial"),
            )
            trial.log_params({"alpha": number / 10, "tau": 1.0})
            trial.log_metrics(dict.fromkeys(JUDGED, number / 5))
            trial.finish(FINISHED)


@pytest.mark.e2e
def test_people_find_methods_side_by_side_then_a_run_its_note_and_trials(
    tmp_path: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place, nasty = records.shop(tmp_path / "runs"), "<img src=x onerror=alert(1)>|`*"
    records.execute(records.cell("natural", variant=nasty), place)
    records.execute(records.cell("pgd_at"), place)
    search(place.store)
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("dialog", lambda dialog: broken.append(dialog.message))
    page.on("response", lambda answer: broken.append(answer.url) if answer.status >= 400 else None)
    page.on("console", lambda said: broken.append(said.text) if said.type == "error" else None)
    with served(tmp_path, views=3) as lines:
        page.goto(lines[1].split()[-1])
        for text in (
            "Group: natural",
            "Group: pgd_at",
            "Parallel Coordinates",
            "test/clean vs. test/aa",
        ):
            page.get_by_text(text).first.wait_for(timeout=60_000)
        page.wait_for_function(DRAWN % len(SHARED + AXES), timeout=60_000)
        page.get_by_text(f"natural ({nasty}) resnet8-w4 digits seed 0").first.click()
        page.get_by_text("Show more").click(timeout=60_000)
        note = page.locator("table", has_text="checkpoint")
        assert "90.0" in note.inner_text(timeout=60_000)
        page.wait_for_function(
            "[...document.images].filter(i => /get-artifact/.test(i.src) && i.naturalWidth).length == 2"
        )
        page.goto(re.sub(r"/runs\?.*", "/models", lines[1].split()[-1]))
        page.get_by_text("pgd_at resnet8-w4 seed 0").first.wait_for(timeout=60_000)
        page.goto(lines[3].split()[-1])
        page.get_by_text("rslad trial 2").first.wait_for(timeout=60_000)
        page.wait_for_function(DRAWN % len(("alpha", *JUDGED)), timeout=60_000)
        assert not page.get_by_text("kd trial 0").count()
    ours = [said for said in broken if not OWN.search(said)]
    assert ours == []


def test_a_port_in_use_or_no_record_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(BenchError, match="no record yet in 'runs'"):
        cli.dispatch(["ui"])
    assert not Path("runs").exists()
    Path("runs").mkdir()
    with pytest.raises(BenchError, match="no record yet in 'runs'"):
        cli.dispatch(["ui"])
    assert not list(Path("runs").iterdir())
    Path("runs/mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="in use"):
        cli.dispatch(["ui", "--port", str(taken.getsockname()[1])])
    with pytest.raises(UsageError, match="65535"):
        cli.dispatch(["ui", "--port", "99999"])
    for words in (["--host", ""], ["--port", "0"]):
        with pytest.raises(UsageError, match="name an address"):
            cli.dispatch(["ui", *words])


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_the_program(stop: signal.Signals) -> None:
    """Nor what the server has started, of which the output is open as long as one of them is alive."""
    code = (
        "from bench.cli import ui; from bench.system import signals; "
        "signals.interrupt_on_stop_signals(); "
        "ui.serve(['sh', '-c', 'sleep 600 & echo up; wait'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == b"up\n"
        running.send_signal(stop)
        assert running.stdout.read() == b""


def test_the_exit_code_of_the_server_is_kept() -> None:
    assert serve(["sh", "-c", "exit 3"]) == 3


def test_an_address_of_ipv6() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(UsageError, match=r"--host ::1 --port \d+: .* in use"):
                check_port("::1", port)
    except OSError:
        pytest.skip("no IPv6")
    check_port("::1", port)


def test_a_server_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert cli.dispatch(["ui"]) == 0
    assert "kept by the server http://somewhere:5000" in capsys.readouterr().out
