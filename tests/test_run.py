"""The whole program on digits: run, skip, resume after a kill, survive a failing cell, evaluate, leaderboard."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import records
from mlflow import MlflowClient
from mlflow.entities import Run

from bench import cli
from bench.execution import job
from bench.execution.cost import Cost
from bench.system.errors import BenchError
from methods.natural import Natural

SMALL = "--suite digits --student resnet8-w4 --limit-train 128 --limit-test 8"
STARTS = 18  # 12 to 15 where it was measured
COST = Cost(train=1.0, evaluate=1.0, student_passes=1.0)
pytestmark = pytest.mark.e2e


def bench(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The program in a process and a folder of its own."""
    command = [sys.executable, "-m", "bench", *words.split()]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | {
        "OMP_NUM_THREADS": "1"
    }


def runs(folder: Path) -> list[Run]:
    """Every run of the store but the parents."""
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    found = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], order_by=["start_time"]
    )
    return [run for run in found if run.data.tags["role"] != "group"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After the README's first command, on a few images."""
    folder = tmp_path_factory.mktemp("whole")
    done = bench(f"run --method gacd --epochs 1 {SMALL}", folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 to do, 0 already recorded", done.stderr)
    assert re.search(r"about \d+ (s|min) in all", done.stderr)
    assert re.search(r"\[2/2\] digits resnet8-w4 gacd seed 0: clean .*, aa ", done.stderr)
    return folder


@pytest.mark.timed
def test_the_first_command_takes_a_minute(tmp_path: Path) -> None:
    """In the CPU time of a bare start, five seconds or so: an absolute bound fails on a slow machine."""
    command = f"-m bench run --method gacd --epochs 1 {SMALL}".split()
    start, whole = (
        spent(words, tmp_path)
        for words in (["-c", "import bench.execution.grid, bench.execution.job"], command)
    )
    assert whole < STARTS * start, (whole, start)


def spent(words: list[str], folder: Path) -> float:
    """CPU seconds of a Python command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment(), capture_output=True, check=True
    )
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def test_two_workers_make_the_same_records(folder: Path, tmp_path: Path) -> None:
    words = f"run --method gacd,natural --workers 2 --epochs 1 {SMALL}"
    done = bench(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\[(\d/3)\] ", done.stderr, flags=re.MULTILINE) == ["1/3", "2/3", "3/3"]
    pairs = [
        {run.data.tags["method"]: run.data for run in runs(place)} for place in (folder, tmp_path)
    ]
    for method in ("trades", "gacd"):
        alone, beside = (found[method].metrics for found in pairs)
        assert {
            name
            for name in alone
            if alone[name] != beside[name] and not name.startswith(("cost/", "train/"))
        } == set()
    assert bench(words, tmp_path).stderr.strip() == "0 to do, 3 already recorded in runs"


def test_everything_is_recorded(folder: Path) -> None:
    teacher, student = runs(folder)
    assert [run.info.status for run in (teacher, student)] == ["FINISHED", "FINISHED"]
    assert (teacher.data.tags["role"], student.data.tags["role"]) == ("teacher", "student")
    attacks = {"clean", "fgsm", "pgd20", "pgd20_trades", "cw_inf", "aa", "worst", "n", "aa_n"}
    assert {name[5:] for name in student.data.metrics if name.startswith("test/")} == attacks
    assert json.loads(student.data.tags["teacher_sha256"]) == {
        "robust": teacher.data.tags["sha256.best"]
    }
    assert "teacher_sha256" not in teacher.data.tags
    metrics = student.data.metrics
    assert metrics["test/worst"] <= metrics["test/aa"] <= metrics["test/clean"]
    assert {
        "val/robust",
        "train/contrast",
        "train/ce_adv",
        "cost/train_seconds",
        "test_ema/pgd20",
        "test_swa/pgd20",
    } < set(metrics)
    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    files = {
        f.path
        for top in ("", "checkpoints", "verdicts")
        for f in client.list_artifacts(student.info.run_id, top)
    }
    assert files >= {
        "spec.json",
        "environment.json",
        "checkpoints/best.pt",
        "checkpoints/ema.pt",
        "checkpoints/swa.pt",
    }
    assert files >= {
        "verdicts/verdicts_best.npz",
        "verdicts/verdicts_best_aa.npz",
        "verdicts/verdicts_last.npz",
    }
    assert not list((folder / "runs" / "work").glob("*/"))


def test_the_same_command_does_nothing(folder: Path) -> None:
    before = [run.info.run_id for run in runs(folder)]
    done = bench(f"run --method gacd --epochs 1 {SMALL}", folder)
    assert (done.returncode, done.stderr.strip()) == (0, "0 to do, 2 already recorded in runs")
    assert [run.info.run_id for run in runs(folder)] == before


def test_evaluate_gives_the_recorded_numbers(folder: Path) -> None:
    student = runs(folder)[1]
    file = Path(student.info.artifact_uri.removeprefix("file://")) / "checkpoints" / "best.pt"
    done = bench(
        f"evaluate --checkpoint {file} --arch resnet8-w4 --dataset digits --limit-test 8", folder
    )
    assert done.returncode == 0, done.stderr
    shown = dict(re.findall(r"^(\w+) +(\d+\.\d+) %", done.stdout, flags=re.MULTILINE))
    assert len(shown) == 7
    assert {name: float(value) / 100 for name, value in shown.items()} == pytest.approx(
        {name: student.data.metrics[f"test/{name}"] for name in shown}, abs=1e-4
    )


def test_evaluate_in_another_norm_from_a_surrogate_and_under_corruptions(folder: Path) -> None:
    file = (
        Path(runs(folder)[1].info.artifact_uri.removeprefix("file://")) / "checkpoints" / "best.pt"
    )
    (teacher,) = (folder / "runs" / "teachers").glob("*.pt")
    net = f"evaluate --checkpoint {file} --arch resnet8-w4 --dataset digits --limit-test 40"
    away = f"--surrogate {teacher} --surrogate-arch resnet8-w16 --attacks pgd20,pgd20@surrogate,corruptions"
    done = bench(f"{net} {away}", folder)
    assert done.returncode == 0, done.stderr
    shown = dict(re.findall(r"^(\S+) +(\d+\.\d+) %", done.stdout, flags=re.MULTILINE))
    assert len(shown) == 4 + 20
    assert "40 test images, l-inf 0.15" in done.stdout
    assert "40 test images, L2 0.5" in bench(f"{net} --norm L2 --attacks pgd20", folder).stdout


def test_leaderboard(folder: Path) -> None:
    done = bench("leaderboard", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        f"leaderboard/{name}"
        for name in (
            "index.html",
            *(f"leaderboard.{kind}" for kind in ("md", "tex", "json", "csv")),
        )
    ]
    text = (folder / "leaderboard" / "leaderboard.md").read_text()
    assert re.search(
        r"^\| 1 \| gacd \([^|]*limit_test=\d+[^|]*\) \| resnet8-w16-trades \| 1 \|",
        text,
        flags=re.MULTILINE,
    )
    assert "gacd" in (folder / "leaderboard" / "index.html").read_text()
    pages = [path.read_text() for path in (folder / "leaderboard" / "runs").glob("*.html")]
    assert pages
    for page in pages:  # what every run records
        assert re.search(r"python -m bench (run|teacher train) ", page)
        assert re.search(r"sha256 [0-9a-f]{64}", page)
        assert re.search(r"<dt>device</dt><dd>\w+</dd>", page)
        assert '"name":"val"' in page
        assert '"name":"train"' in page


def test_teacher_is_cached_and_verified_by_hash(folder: Path) -> None:
    assert "trained here, digits@3" in bench("teacher list", folder).stdout
    done = bench("teacher verify resnet8-w16-trades --limit-test 8", folder)
    assert re.search(r"file has sha256 [0-9a-f]{64}, a resnet8-w16 for digits", done.stdout)
    (file,) = (folder / "runs" / "teachers").glob("*.pt")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    done = bench(f"run --method ard --epochs 1 {SMALL}", folder)
    file.write_bytes(whole)
    assert done.returncode == 1
    assert "another or damaged file; delete it to have the teacher made again" in done.stderr


def test_doctor_reports_and_changes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = bench("doctor", folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r"digits +resnet8-w4: [\d,]+ images a second", done.stdout)
    assert "1,257 train, 180 validation, 360 test" in done.stdout
    assert sorted(folder.rglob("*")) == before


def test_a_killed_run_resumes_and_ends_the_same(tmp_path: Path) -> None:
    words = f"run --method natural --epochs 12 {SMALL}"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    running = start(words, tmp_path / "a")
    running.kill()
    running.communicate()
    assert (
        "interrupted or running: natural resnet8-w4 digits seed 0"
        in bench("doctor", tmp_path / "a").stdout
    )
    for name in ("a", "b"):
        assert bench(words, tmp_path / name).returncode == 0
    (resumed,), (whole,) = runs(tmp_path / "a"), runs(tmp_path / "b")
    assert resumed.info.status == "FINISHED"
    machine = ("_seconds", "_bytes")  # what the machine took is no result
    assert {k: v for k, v in resumed.data.metrics.items() if not k.endswith(machine)} == {
        k: v for k, v in whole.data.metrics.items() if not k.endswith(machine)
    }
    assert resumed.data.tags["sha256.last"] == whole.data.tags["sha256.last"]


def workers(parent: int) -> list[int]:
    """Worker processes of a running program."""
    found = subprocess.run(
        ["pgrep", "-P", str(parent), "-f", "spawn_main"], capture_output=True, text=True
    ).stdout
    return [int(pid) for pid in found.split()]


def start(words: str, folder: Path) -> subprocess.Popen[str]:
    """The program in the background, once one of its workers has begun to train."""
    command = [sys.executable, "-m", "bench", *words.split()]
    running = subprocess.Popen(
        command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )
    while running.poll() is None and not list(folder.glob("runs/work/*/state.pt")):
        time.sleep(0.01)
    assert running.poll() is None, "it ended before it could be killed"
    return running


def test_workers_do_not_outlive_a_killed_program(tmp_path: Path) -> None:
    words = f"run --method natural --workers 2 --epochs 40 {SMALL}"
    running = start(words, tmp_path)
    left = workers(running.pid)
    assert left
    running.kill()
    running.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert bench(words, tmp_path).returncode == 0


def test_told_to_stop_no_worker_takes_up_the_next_cell(tmp_path: Path) -> None:
    """Five cells: when the program is told to stop, two run and one waits already where workers fetch the next."""
    words = f"run --method natural --epochs 400 --seeds 0,1,2,3,4 --workers 2 {SMALL}"
    running = start(words, tmp_path)
    while len(list(tmp_path.glob("runs/work/*/state.pt"))) < 2:
        time.sleep(0.01)
    left = workers(running.pid)
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=60)[1]
    assert said.endswith("interrupted; the same command continues\n")
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert len(list(tmp_path.glob("runs/work/*/"))) == 2, "another cell was begun"
    assert [run.info.status for run in runs(tmp_path)] == ["KILLED"] * 2


def test_a_worker_that_dies_loses_its_own_wave_only(tmp_path: Path) -> None:
    words = f"run --method kd,pgd_at --teacher natural --workers 2 --epochs 1 {SMALL}"
    running = start(words, tmp_path)
    for pid in workers(running.pid):
        os.kill(pid, signal.SIGKILL)
    said = running.communicate()[1]
    assert running.returncode == 1
    assert "Traceback" not in said
    assert "natural seed 0: failed: a worker process died; the same command continues" in said
    assert "kd seed 0: not run, its teacher" in said
    assert re.search(r"pgd_at seed 0: clean", said)
    assert bench(words, tmp_path).returncode == 0


def test_one_failing_cell_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise BenchError("out of luck")

        patch.setattr(Natural, "loss", fail)
        patch.setattr("bench.execution.grid.estimate_costs", lambda todo, *_: [COST] * len(todo))
        words = f"run --method natural,pgd_at,kd --teacher natural --epochs 1 {SMALL}"
        assert cli.dispatch(words.split()) == 1
    said = capsys.readouterr().err
    assert said.count("failed: out of luck") == 2  # the natural teacher, too
    assert re.search(r"kd seed 0: not run, its teacher resnet8-w16-natural-\w+ failed", said)
    states = {run.data.tags["method"]: run.info.status for run in runs(tmp_path)}
    assert states == {"natural": "FAILED", "pgd_at": "FINISHED"}
    assert {run.data.tags.get("status_note") for run in runs(tmp_path)} == {"out of luck", ""}
    assert cli.dispatch(words.split()) == 0
    assert "3 to do, 1 already recorded" in capsys.readouterr().err
    assert {run.info.status for run in runs(tmp_path)} == {"FINISHED"}


def test_an_interrupted_repetition_goes_on_without_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both what was begun and what was not reached; then nothing is left to do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(job, "evaluate_checkpoint", lambda *_: (records.MEASURED, {}))
    monkeypatch.setattr("bench.execution.grid.estimate_costs", lambda todo, *_: [COST] * len(todo))
    words = f"run --method natural --seeds 0,1 --epochs 1 {SMALL}".split()
    assert cli.dispatch(words) == 0
    with monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(job, "add_note_and_links", interrupt)  # at the end of the first
        with pytest.raises(KeyboardInterrupt):
            cli.dispatch([*words, "--force"])
    assert len(list(tmp_path.glob("runs/work/*/state.pt"))) == 1
    with monkeypatch.context() as patch:
        trained: list[int] = []
        patch.setattr(
            "bench.training.trainer.Trainer._save_epoch",
            lambda self, *_: trained.append(self.spec.seed),
        )
        assert cli.dispatch(words) == 1  # the second has no checkpoint
        assert trained == [1]
    assert cli.dispatch(words) == 0
    assert cli.dispatch(words) == 0
    said = re.findall(r"^\d to do, \d", capsys.readouterr().err, flags=re.MULTILINE)
    assert said == ["2 to do, 0", "2 to do, 0", "2 to do, 0", "1 to do, 1", "0 to do, 2"]
    states = [run.info.status for run in runs(tmp_path)]
    assert states == [
        *["FINISHED"] * 3,
        "FAILED",
        "FINISHED",
    ]  # the last begins with its first epoch, as a run of its own


def test_a_run_does_not_go_on_with_another_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there is training to go on with; until then it is the teacher that is there."""
    made, place = records.cell("rslad"), records.shop(tmp_path)

    def begin(sha256: str) -> dict[str, str]:
        monkeypatch.setattr(job.cards, "find_card", lambda *_: SimpleNamespace(sha256=sha256))
        return job.check_teachers(made, place, tmp_path)

    assert begin("a") == {"robust": "a"}
    assert begin("b") == {"robust": "b"}
    (tmp_path / job.STATE).touch()
    assert begin("b") == {"robust": "b"}
    with pytest.raises(
        BenchError, match="another checkpoint of its teacher was used before: --force restarts"
    ):
        begin("a")
