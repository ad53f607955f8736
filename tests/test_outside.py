"""Code of others that would end the program, or stop it for ever: its own line, and no more."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from packages import install_package, site
from test_plugins import PLUGIN, exit_code, install_plugin
from test_train import make_trainer
from torch import Tensor

import methods
from bench.execution import cost, plan
from bench.execution.plan import PlannedRun
from bench.protocol.options import RunOptions
from bench.system.signals import StopWorker
from bench.training.trainer import TrainingModule
from methods import outside
from methods.base import Batch, Nets
from methods.natural import Natural
from methods.outside import OutsideError

__all__ = ["site"]


class Unusual(BaseException):
    """As an exception of a library that nobody is meant to catch."""


# --- Imports

IMPORTS = {
    "exits": ("raise SystemExit(3)", "cannot be loaded: SystemExit: 3"),
    "unusual": ("class E(BaseException): pass\nraise E('luck')", "cannot be loaded: E: luck"),
    "generator": ("raise GeneratorExit", "cannot be loaded: GeneratorExit"),
    "recursive": ("def f(): f()\nf()", "cannot be loaded: RecursionError"),
    "ends": ("import os; os._exit(0)", "cannot be loaded: ends the program while it is imported"),
    "forks": (f"import os; os.fork()\n{PLUGIN}", "cannot be loaded: forks the program"),
    "hangs": (
        "import signal, time\n"
        "for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
        "while True: time.sleep(1)",
        "cannot be loaded: takes more than 2 s to be imported",
    ),
}


@pytest.fixture
def short_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "IMPORT_SECONDS", 2.0)


@pytest.mark.usefixtures("short_imports")
@pytest.mark.parametrize("name", IMPORTS)
def test_an_import_that_would_end_the_program(
    name: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, message = IMPORTS[name]
    install_plugin(site, name, code)
    install_plugin(site, "works", PLUGIN)
    assert exit_code("list methods --json") == 0
    faults = {
        entry["name"]: entry["fault"] for entry in json.loads(capsys.readouterr().out)["methods"]
    }
    assert message in faults[name]
    assert faults["works"] == ""
    assert exit_code(f"run --method {name} --suite digits") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: plugin {name!r} {message}")


@pytest.mark.usefixtures("short_imports")
@pytest.mark.parametrize("group", ["bench.suites", "bench.datasets", "bench.models"])
def test_other_plugins_that_end_the_program(
    group: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_package(site, group, "ends", "import os; os._exit(0)")
    assert exit_code("list") == 0
    output = capsys.readouterr()
    assert "ends the program while it is imported" in " ".join((output.out + output.err).split())


def test_a_plugin_keeps_no_signal_to_itself(site: Path) -> None:
    code = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{PLUGIN}"
    install_plugin(site, "deaf", code)
    before = signal.getsignal(signal.SIGINT)
    assert methods.load("deaf").__name__ == "Mine"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_import_is_tried_once(site: Path) -> None:
    """In a copy of the process, which leaves no trace here but what it writes to files."""
    install_plugin(site, "logs", f"open({str(site / 'log')!r}, 'a').write('x')\n{PLUGIN}")
    for _ in range(3):
        methods.load("logs")
    assert (site / "log").read_text() == "xx"


def test_an_interrupted_import_is_interrupted(site: Path) -> None:
    install_plugin(site, "stops", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        methods.load("stops")
    assert outside.import_fault(EntryPoint("stops", "pack_stops:Mine", "bench.methods")) == ""


@pytest.mark.parametrize("words", ["list", "show", "run --method natural --dry-run"])
def test_a_package_with_damaged_entry_points_is_named(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No program that looks for plugins works beside it, torch and MLflow neither."""
    install_package(tmp_path, "bench.methods", "odd", "")
    (tmp_path / "pack_odd-1.dist-info" / "entry_points.txt").write_text("[a]\nno equals sign\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert exit_code(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the entry points of pack-odd in '{tmp_path}' cannot be read (")
    assert line.endswith("): repair or uninstall it")


# --- Losses

FAULTS = [RuntimeError("bad"), SystemExit(3), RecursionError("deep"), Unusual("odd"), MemoryError()]


@dataclass(frozen=True)
class Failing(Natural):
    """Natural training whose loss raises."""

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        raise self.fault


Failing.fault = FAULTS[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_loss_that_fails_in_the_probe_costs_its_own_estimate(
    fault: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Failing, "fault", fault)
    options = RunOptions(method="natural", student="resnet8-w4", store=tmp_path)
    (planned,) = plan.plan_runs(options, {})
    failing = PlannedRun(planned.spec, Failing(), "", "")
    other = PlannedRun(planned.spec, Natural(), "", "")
    device = torch.device("cpu")
    assert cost.estimate_costs([failing], [failing], tmp_path, device) == [cost.UNKNOWN]
    (warning,) = caplog.messages
    assert warning.startswith("warning: digits resnet8-w4 natural seed 0 cannot be timed: ")
    assert type(fault).__name__ in warning
    (estimate,) = cost.estimate_costs([other], [other], tmp_path, device)
    assert estimate.train > 0


@pytest.mark.parametrize("fault", [SystemExit(3), Unusual("odd"), GeneratorExit()])
def test_a_loss_that_would_end_the_program_fails_its_run(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "fault", fault)
    trainer = make_trainer(tmp_path / "run", Failing())
    with pytest.raises(OutsideError, match=f"^{type(fault).__name__}: "):
        trainer.fit(lambda *_: None, lambda *_: None)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), StopWorker(1), RuntimeError("bad")])
def test_what_stops_a_run_from_outside_still_does(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "fault", fault)
    trainer = make_trainer(tmp_path / "run", Failing())
    with pytest.raises(type(fault)):
        trainer.fit(lambda *_: None, lambda *_: None)


def test_parts_that_would_end_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def exit_build(*_: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(Failing, "build", exit_build)
    with pytest.raises(OutsideError, match="SystemExit: 3"):
        TrainingModule(Failing(), torch.nn.Linear(1, 1), {}, 1)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_method_that_exits_takes_no_other_with_it(
    workers: str, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = "    def loss(self, nets, batch, adv):\n        raise SystemExit(0)\n"
    install_plugin(site, "exits", f"{PLUGIN}\n{loss}")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    monkeypatch.chdir(site)
    words = "--suite digits --student resnet8-w4 --epochs 1 --limit-train 128 --limit-test 8"
    assert exit_code(f"run --method exits,natural {words} --workers {workers}") == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("exits seed 0: failed: OutsideError: SystemExit: 0" in line for line in lines)
    assert any("natural seed 0: clean" in line for line in lines)
    assert not any("Traceback" in line for line in lines)
