"""MLflow's server on the record: what it serves, to whom, and that it ends.

A real browser looks at its pages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import records

from bench import cli
from bench.cli.commands.ui import announce, check_port, run_server
from bench.cli.mlflow_views import load_view
from bench.system.errors import BenchError, UsageError
from bench.tracking.store import TUNING_SUFFIX, TrackingStore
from leaderboards.schema.fields import FINISHED

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Response

# Errors of MLflow's own pages: a request that its server does not know and what Chromium then says;
# a harmless notice; parallel coordinates drawn before their width is known, on a slow machine. They
# are drawn a second time, which is checked.
MLFLOW_ERRORS = re.compile(
    r"/users/current$|status of 404|ResizeObserver|<\w+> attribute \w+: Expected .*NaN"
)
AXES_ARE_DRAWN = """() => {
  const axes = [...document.querySelectorAll('.parcoords .dimension')]
  const positions = axes.map(axis => axis.getAttribute('transform'))
  return axes.length == %d && positions.every(position => /^translate\\(\\d/.test(position))
}"""
OBJECTIVES = load_view("trials")["compareRunCharts"][0]["selectedMetrics"]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def serve_folder(folder: Path) -> Iterator[list[str]]:
    """Run `bench ui` on the record of a folder.

    Yields the lines that it prints: one for each of the views, then its address.
    """
    port = free_port()
    environment = os.environ.copy()
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "bench", "ui", "--port", str(port)]
    running = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout
        lines = []
        for line in running.stdout:
            lines.append(line)
            if f"http://127.0.0.1:{port} shows sqlite" in line:
                break
        assert "starting, about 10 s" in lines[-1]
        # MLflow's server prints lines of its own.
        ready = next(line for line in running.stdout if line.startswith("ready: "))
        assert ready == f"ready: {lines[0].split()[-1]}\n"
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10)
        yield lines
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 130
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10)


@pytest.mark.e2e
def test_it_serves_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another store, which knows the server alone, fetches the records and writes the same."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    context = records.make_context(tmp_path / "runs")
    for seed in (0, 1):
        records.run_planned(records.plan_student(seed=seed), context)
    words = ["leaderboard", "--store", str(tmp_path / "runs"), "--out", str(tmp_path / "read")]
    assert cli.dispatch(words) == 0
    with serve_folder(tmp_path) as lines:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", lines[-1].split()[0])
        capfd.readouterr()
        words = ["leaderboard", "--store", str(tmp_path / "far"), "--out", str(tmp_path / "served")]
        assert cli.dispatch(words) == 0
        errors = capfd.readouterr().err
        # The server logs to the same stream, dated, whenever it likes.
        assert [line for line in errors.splitlines() if not line.startswith("20")] == []
    assert "stopped" in capfd.readouterr().err.splitlines()
    (fetched,) = (tmp_path / "far").glob("records-*")
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        path.name: path.read_bytes() for path in context.store.records.iterdir()
    }
    tables = [tmp_path / name / "leaderboard.md" for name in ("served", "read")]
    assert tables[0].read_text() == tables[1].read_text()


def fetch(address: str, words: dict[str, str], content: bytes | None = None) -> int:
    """Ask a server for something with these headers; return the status of its answer."""
    headers = words | {"Content-Type": "application/json"}
    request = urllib.request.Request(address, content, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def command_lines(group: int) -> str:
    """Return the command lines of the processes of a group."""
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(folder.name)) == group:
                lines.append((folder / "cmdline").read_bytes().decode(errors="replace"))
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize("host", [socket.gethostname(), "0.0.0.0"])
def test_a_browser_gets_pages_by_the_name_of_the_host(host: str, tmp_path: Path) -> None:
    """A page posts what it asks for with its own address as origin. No password is on a line."""
    name, store, port = socket.gethostname(), tmp_path / "runs", free_port()
    try:
        check_port(host, port)
    except UsageError:
        pytest.skip("this machine's name has no address")
    address = "127.0.0.1" if host == "0.0.0.0" else socket.gethostbyname(name)
    TrackingStore(store).get_or_create_experiment("digits@3")
    uri = f"sqlite:///{store}/mlflow.db?timeout=20&password=hidden"
    words = ["ui", "--store", str(store), "--host", host, "--port", str(port)]
    running = subprocess.Popen(
        [sys.executable, "-m", "bench", *words],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert running.stdout
        lines = []
        for line in running.stdout:
            lines.append(line)
            if line.startswith("ready: "):
                break
        page, search = f"http://{address}:{port}/", "ajax-api/2.0/mlflow/experiments/search"
        question = json.dumps({"max_results": 5}).encode()
        for header in (f"{name}:{port}", name, f"localhost:{port}"):
            assert fetch(page, {"Host": header}) == 200, header
            headers = {"Host": header, "Origin": f"http://{name}:{port}"}
            assert fetch(page + search, headers, question) == 200, header
        assert fetch(page, {"Host": f"elsewhere.org:{port}"}) == 403
        origin = {"Origin": f"http://elsewhere.org:{port}"}
        assert fetch(page + search, {"Host": f"{name}:{port}"} | origin, question) == 403
        servers = {os.getpgid(child) for child in children_of(running.pid)}
        shown = "".join(map(command_lines, servers))
        assert "mlflow" in shown
        assert "hidden" not in shown + "".join(lines)
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 130


def children_of(process: int) -> list[int]:
    """Return the ids of the children of a process."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.fixture
def page() -> Iterator[Page]:
    """Open a page of a headless browser."""
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


def record_searches(store: TrackingStore) -> None:
    """Record two searches as `bench tune` does, one of three trials and one of one."""
    for method, trials in (("rslad", 3), ("kd", 1)):
        tags = {"study": method, "method": method}
        study = store.open_run(
            f"digits@3{TUNING_SUFFIX}", method, tags | {"role": "study"}, "", ("study", "role")
        )
        study.log_params({"range.alpha": '{"name": "FloatDistribution"}', "range.tau": "1.0"})
        study.finish(FINISHED)
        for number in range(trials):
            name, trial_tags = f"{method} trial {number}", {"role": "trial", "trial": f"{number}"}
            trial = store.open_run(
                f"digits@3{TUNING_SUFFIX}",
                name,
                tags | trial_tags,
                study.run_id,
                ("study", "trial"),
            )
            trial.log_params({"alpha": number / 10, "tau": 1.0})
            trial.log_metrics(dict.fromkeys(OBJECTIVES, number / 5))
            trial.finish(FINISHED)


@pytest.mark.slow
@pytest.mark.e2e
def test_pages_show_methods_a_run_its_note_and_trials(
    tmp_path: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    context, nasty = records.make_context(tmp_path / "runs"), "<img src=x onerror=alert(1)>|`*"
    records.run_planned(records.plan_student("natural", variant=nasty), context)
    records.run_planned(records.plan_student("pgd_at"), context)
    record_searches(context.store)
    errors: list[str] = []

    def check_response(response: Response) -> None:
        if response.status >= 400:
            errors.append(response.url)

    def check_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.on("response", check_response)
    page.on("console", check_console)
    parallel = load_view("methods")["compareRunCharts"][0]
    axes = len(parallel["selectedParams"] + parallel["selectedMetrics"])
    with serve_folder(tmp_path) as lines:
        page.goto(lines[0].split()[-1])
        for text in (
            "Group: natural",
            "Group: pgd_at",
            "Parallel Coordinates",
            "test/clean vs. test/aa",
        ):
            page.get_by_text(text).first.wait_for(timeout=60_000)
        page.wait_for_function(AXES_ARE_DRAWN % axes, timeout=60_000)
        page.get_by_text(f"natural ({nasty}) resnet8-w4 digits seed 0").first.click()
        page.get_by_text("Show more").click(timeout=60_000)
        note = page.locator("table", has_text="checkpoint")
        assert "87.5" in note.inner_text(timeout=60_000)
        drawn = "filter(i => /get-artifact/.test(i.src) && i.naturalWidth)"
        page.wait_for_function(f"[...document.images].{drawn}.length == 2")
        page.goto(re.sub(r"/runs\?.*", "/models", lines[0].split()[-1]))
        page.get_by_text("pgd_at resnet8-w4 seed 0").first.wait_for(timeout=60_000)
        page.goto(lines[2].split()[-1])
        page.get_by_text("rslad trial 2").first.wait_for(timeout=60_000)
        page.wait_for_function(AXES_ARE_DRAWN % len(["alpha", *OBJECTIVES]), timeout=60_000)
        assert not page.get_by_text("kd trial 0").count()
    assert [error for error in errors if not MLFLOW_ERRORS.search(error)] == []


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
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(UsageError, match="in use"),
    ):
        cli.dispatch(["ui", "--port", str(server.getsockname()[1])])
    with pytest.raises(UsageError, match="65535"):
        cli.dispatch(["ui", "--port", "99999"])
    for words in (["--host", ""], ["--port", "0"]):
        with pytest.raises(UsageError, match="name an address"):
            cli.dispatch(["ui", *words])


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_the_program(stop: signal.Signals) -> None:
    """Nor do its children outlive it: the output stays open as long as one of them is alive."""
    code = "from bench.system import signals; from bench.cli.commands import ui; "
    code += "signals.interrupt_on_stop_signals(); "
    code += "ui.run_server(['sh', '-c', 'sleep 600 & echo up; wait'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == b"up\n"
        running.send_signal(stop)
        assert running.stdout.read() == b""


def test_the_exit_code_of_the_server_is_kept() -> None:
    assert run_server(["sh", "-c", "exit 3"]) == 3


@pytest.mark.parametrize("opens", [True, False])
def test_the_view_is_opened_when_the_server_answers(
    opens: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages: list[str] = []

    def open_page(page: str) -> bool:
        pages.append(page)
        return opens

    class Health(BaseHTTPRequestHandler):
        answers = iter((503, 200))

        def do_GET(self) -> None:
            assert self.path == "/health"
            self.send_response(next(self.answers))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr("webbrowser.open", open_page)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        announce(address, f"{address}/#/view", browse=True)
        server.shutdown()
    assert pages == [f"{address}/#/view"]
    output = capsys.readouterr()
    assert output.out == f"ready: {address}/#/view\n"
    assert output.err == ("" if opens else "no browser could be opened\n")


def test_an_ipv6_address_is_checked() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            port = server.getsockname()[1]
            with pytest.raises(UsageError, match=r"--host ::1 --port \d+: .* in use"):
                check_port("::1", port)
    except OSError:
        pytest.skip("no IPv6")
    check_port("::1", port)


def test_a_tracking_server_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@somewhere:5000")
    assert cli.dispatch(["ui"]) == 0
    assert "kept by the server http://somewhere:5000" in capsys.readouterr().out
