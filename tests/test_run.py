"""The program on digits: run, skip, resume after a kill, survive a failure, evaluate, rank."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import records
from mlflow import MlflowClient
from mlflow.entities import Run
from program import PROGRAM, bench, start

from bench import cli
from bench.execution import job, run_teachers
from bench.execution.cost import Cost
from bench.execution.plan import PlannedRun
from bench.system.errors import BenchError
from bench.teachers import cards
from bench.tracking.claims import Claim, read_claims
from bench.training.trainer import STATE, Trainer
from leaderboards.schema.fields import FINISHED, REPLACED_TAG, Tag
from methods.natural import Natural

SMALL = "--suite digits --student resnet8-w4 --limit-train 128 --limit-test 8"
FIRST_COMMAND = f"run --method gacd --epochs 1 {SMALL}"
# CPU time of the first command, in bare starts of the program. It was measured as 12 to 15.
MOST_STARTS = 18
COST = Cost(train=1.0, evaluate=1.0, student_passes=1.0)
pytestmark = pytest.mark.e2e


def make_client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")


def list_runs(folder: Path) -> list[Run]:
    """Return every run of the store but the parents, oldest first."""
    client = make_client(folder)
    experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiment_ids, order_by=["start_time"])
    return [run for run in runs if run.data.tags["role"] != "group"]


def best_checkpoint(run: Run) -> Path:
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    return artifacts / "checkpoints" / "best.pt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where the README's first command ran, on a few images."""
    folder = tmp_path_factory.mktemp("program")
    result = bench(FIRST_COMMAND, folder)
    assert result.code == 0, result.err
    assert re.search(r"2 to do, 0 already recorded", result.err)
    assert re.search(r"about \d+ (s|min) in all", result.err)
    assert re.search(r"\[2/2\] digits resnet8-w4 gacd seed 0: clean .*, aa ", result.err)
    return folder


@pytest.mark.timed
def test_the_first_command_takes_a_minute(tmp_path: Path) -> None:
    """Measured in bare starts of five seconds or so: a slow machine would fail a fixed bound."""
    imports = ("-c", "import bench.execution.grid.run, bench.execution.job")
    bare_start = measure_cpu_seconds("", tmp_path, imports)
    total = measure_cpu_seconds(FIRST_COMMAND, tmp_path)
    assert total < MOST_STARTS * bare_start, (total, bare_start)


def measure_cpu_seconds(words: str, folder: Path, program: tuple[str, ...] = PROGRAM) -> float:
    """Return the CPU seconds of a command in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    process = start(words, folder, program)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


@pytest.mark.slow
def test_two_workers_make_the_same_records(folder: Path, tmp_path: Path) -> None:
    command = f"run --method gacd,natural --workers 2 --epochs 1 {SMALL}"
    result = bench(command, tmp_path)
    assert result.code == 0, result.err
    for word in ("starts", "clean"):
        numbers = re.findall(rf"^\[(\d/3)\] .*: {word}", result.err, flags=re.MULTILINE)
        assert sorted(numbers) == ["1/3", "2/3", "3/3"]
    serial, parallel = metrics_by_method(folder), metrics_by_method(tmp_path)
    for method in ("trades", "gacd"):
        differing = set()
        for name, value in serial[method].items():
            if value != parallel[method][name]:
                differing.add(name)
        assert {name for name in differing if not name.startswith(("cost/", "train/"))} == set()
    repeated = bench(command, tmp_path)
    assert repeated.err.startswith("0 to do, 3 already recorded in runs\nmethod ")


def metrics_by_method(folder: Path) -> dict[str, dict[str, float]]:
    return {run.data.tags["method"]: run.data.metrics for run in list_runs(folder)}


def test_everything_is_recorded(folder: Path) -> None:
    teacher, student = list_runs(folder)
    assert teacher.info.status == "FINISHED"
    assert student.info.status == "FINISHED"
    assert teacher.data.tags["role"] == "teacher"
    assert student.data.tags["role"] == "student"
    assert "teacher_sha256" not in teacher.data.tags
    teacher_sha256 = json.loads(student.data.tags["teacher_sha256"])
    assert teacher_sha256 == {"robust": teacher.data.tags["sha256.best"]}
    assert not list((folder / "runs" / "work").glob("*/"))


def test_metrics_are_recorded(folder: Path) -> None:
    student = list_runs(folder)[1]
    metrics = student.data.metrics
    attacks = {"clean", "fgsm", "pgd20", "pgd20_trades", "cw_inf", "aa", "worst", "n", "aa_n"}
    assert {name[5:] for name in metrics if name.startswith("test/")} == attacks
    assert metrics["test/worst"] <= metrics["test/aa"] <= metrics["test/clean"]
    assert {
        "val/robust",
        "train/contrast",
        "train/ce_adv",
        "cost/train_seconds",
        "test_ema/pgd20",
        "test_swa/pgd20",
    } < set(metrics)


def test_files_are_recorded(folder: Path) -> None:
    student = list_runs(folder)[1]
    client = make_client(folder)
    paths = set()
    for top in ("", "checkpoints", "verdicts"):
        paths |= {file.path for file in client.list_artifacts(student.info.run_id, top)}
    assert paths >= {
        "spec.json",
        "environment.json",
        "checkpoints/best.pt",
        "checkpoints/ema.pt",
        "checkpoints/swa.pt",
        "verdicts/verdicts_best.npz",
        "verdicts/verdicts_best_aa.npz",
        "verdicts/verdicts_last.npz",
    }


def test_the_results_name_model_and_log(folder: Path) -> None:
    result = bench(f"{FIRST_COMMAND} --quiet", folder)
    (model,) = re.findall(r"^model   (.*)", result.err, flags=re.MULTILINE)
    assert folder / model == best_checkpoint(list_runs(folder)[1])
    (log,) = (folder / "runs" / "logs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}\.\d{3}-run\.log", log.name)
    text = log.read_text()
    assert FIRST_COMMAND in text.splitlines()[0]
    assert re.search(r"^torch: \d", text, flags=re.MULTILINE)
    assert re.search(r"^20\S+ \S+ INFO \[2/2\] digits resnet8-w4 gacd seed 0: clean ", text, re.M)
    assert re.search(r" DEBUG \[2/2\] epoch 1 ends: train/", text)


def test_the_same_command_does_nothing(folder: Path) -> None:
    before = [run.info.run_id for run in list_runs(folder)]
    result = bench(FIRST_COMMAND, folder)
    assert result.code == 0
    lines = result.err.splitlines()
    assert lines[0] == "0 to do, 2 already recorded in runs"
    assert [line.split()[0] for line in lines[1:4]] == ["method", "trades", "gacd"]
    assert lines[-3] == "next    python -m bench leaderboard"
    # Nothing was done, so there is no second log.
    assert len(list((folder / "runs" / "logs").iterdir())) == 1
    assert [run.info.run_id for run in list_runs(folder)] == before


def test_evaluate_gives_the_recorded_numbers(folder: Path) -> None:
    student = list_runs(folder)[1]
    file = best_checkpoint(student)
    result = bench(
        f"evaluate --checkpoint {file} --arch resnet8-w4 --dataset digits --limit-test 8", folder
    )
    assert result.code == 0, result.err
    percents = re.findall(r"^(\w+) +(\d+\.\d+) %", result.out, flags=re.MULTILINE)
    printed = {name: float(percent) / 100 for name, percent in percents}
    recorded = {name: student.data.metrics[f"test/{name}"] for name in printed}
    assert len(printed) == 7
    assert printed == pytest.approx(recorded, abs=1e-4)


@pytest.mark.slow
def test_evaluate_in_another_norm_from_a_surrogate_and_under_corruptions(folder: Path) -> None:
    file = best_checkpoint(list_runs(folder)[1])
    (teacher,) = (folder / "runs" / "teachers").glob("*.pt")
    evaluate = f"evaluate --checkpoint {file} --arch resnet8-w4 --dataset digits --limit-test 40"
    surrogate = f"--surrogate {teacher} --surrogate-arch resnet8-w16"
    attacks = "--attacks pgd20,pgd20@surrogate,corruptions"
    result = bench(f"{evaluate} {surrogate} {attacks}", folder)
    assert result.code == 0, result.err
    percents = dict(re.findall(r"^(\S+) +(\d+\.\d+) %", result.out, flags=re.MULTILINE))
    assert len(percents) == 4 + 20
    assert "40 test images, l-inf 0.15" in result.out
    result = bench(f"{evaluate} --norm L2 --attacks pgd20", folder)
    assert "40 test images, L2 0.5" in result.out


def test_leaderboard(folder: Path) -> None:
    result = bench("leaderboard", folder)
    assert result.code == 0, result.err
    assert result.out.split() == [
        "leaderboard/index.html",
        "leaderboard/leaderboard.md",
        "leaderboard/leaderboard.tex",
        "leaderboard/leaderboard.json",
        "leaderboard/leaderboard.csv",
    ]
    markdown = (folder / "leaderboard" / "leaderboard.md").read_text()
    row = r"^\| 1 \| gacd \([^|]*limit_test=\d+[^|]*\) \| resnet8-w16-trades \| 1 \|"
    assert re.search(row, markdown, flags=re.MULTILINE)
    assert "gacd" in (folder / "leaderboard" / "index.html").read_text()
    pages = [path.read_text() for path in (folder / "leaderboard" / "runs").glob("*.html")]
    assert pages
    for page in pages:
        assert re.search(r"python -m bench (run|teacher train) ", page)
        assert re.search(r"sha256 [0-9a-f]{64}", page)
        assert re.search(r"<dt>device</dt><dd>\w+</dd>", page)
        assert '"name":"val"' in page
        assert '"name":"train"' in page


def test_a_teacher_is_cached_and_verified_by_hash(folder: Path) -> None:
    assert "trained here, digits@3" in bench("teacher list", folder).out
    result = bench("teacher verify resnet8-w16-trades --limit-test 8 --limit-train 8", folder)
    assert re.search(r"file has sha256 [0-9a-f]{64}, a resnet8-w16 for digits", result.out)
    (file,) = (folder / "runs" / "teachers").glob("*.pt")
    content = file.read_bytes()
    # A number of a tensor: whatever else a file shows, its hash does.
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    result = bench(f"run --method ard --epochs 1 {SMALL}", folder)
    file.write_bytes(content)
    assert result.code == 1
    message = "another or damaged file; delete it to have the teacher made again"
    assert message in result.err


def test_doctor_reports_and_changes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    result = bench("doctor", folder)
    assert result.code == 0, result.err
    assert re.search(r"digits +resnet8-w4: [\d,]+ images a second", result.out)
    assert "1,257 train, 180 validation, 360 test" in result.out
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_the_same(tmp_path: Path) -> None:
    command = f"run --method natural --epochs 12 {SMALL}"
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    killed.mkdir()
    unbroken.mkdir()
    process = start_training(command, killed)
    process.kill()
    process.communicate()
    report = bench("doctor", killed).out
    assert "interrupted or running: natural resnet8-w4 digits seed 0" in report
    for folder, verb in ((killed, "continues"), (unbroken, "starts")):
        result = bench(command, folder)
        assert result.code == 0
        assert f"digits resnet8-w4 natural seed 0: {verb}" in result.err
    (resumed_run,) = list_runs(killed)
    (unbroken_run,) = list_runs(unbroken)
    assert resumed_run.info.status == "FINISHED"
    assert deterministic_metrics(resumed_run) == deterministic_metrics(unbroken_run)
    assert resumed_run.data.tags["sha256.last"] == unbroken_run.data.tags["sha256.last"]


def deterministic_metrics(run: Run) -> dict[str, float]:
    """Return the metrics of a run without the time and memory that it took."""
    metrics = run.data.metrics.items()
    return {name: value for name, value in metrics if not name.endswith(("_seconds", "_bytes"))}


def worker_pids(parent: int) -> list[int]:
    """Return the worker processes of a running program."""
    command = ["pgrep", "-P", str(parent), "-f", "spawn_main"]
    result = subprocess.run(command, capture_output=True, text=True)
    return [int(pid) for pid in result.stdout.split()]


def any_alive(pids: list[int]) -> bool:
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


def saved_states(folder: Path) -> list[Path]:
    """Return the state files of the runs that are not done."""
    return list(folder.glob("runs/work/*/state.pt"))


def start_training(arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start the program in the background and return once a run has finished an epoch."""
    process = start(arguments, folder)
    while process.poll() is None and not saved_states(folder):
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    return process


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_program(tmp_path: Path) -> None:
    command = f"run --method natural --workers 2 --epochs 40 {SMALL}"
    process = start_training(command, tmp_path)
    pids = worker_pids(process.pid)
    assert pids
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any_alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any_alive(pids)
    assert bench(command, tmp_path).code == 0


@pytest.mark.slow
def test_workers_start_no_run_after_a_stop_signal(tmp_path: Path) -> None:
    """Two of five runs train, and the queue of the workers already holds a third."""
    command = f"run --method natural --epochs 400 --seeds 0,1,2,3,4 --workers 2 {SMALL}"
    process = start_training(command, tmp_path)
    while len(saved_states(tmp_path)) < 2:
        time.sleep(0.01)
    pids = worker_pids(process.pid)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert errors.endswith("interrupted; the same command continues\n")
    assert not any_alive(pids)
    assert len(list(tmp_path.glob("runs/work/*/"))) == 2, "another run was started"
    assert [run.info.status for run in list_runs(tmp_path)] == ["KILLED"] * 2


def claims_of(method: str, folder: Path) -> list[Claim]:
    """Return what processes say of the runs of a method that they are at."""
    runs = [run for run in list_runs(folder) if run.data.params.get("method") == method]
    spec_ids = {run.data.tags[Tag.SPEC_ID] for run in runs}
    experiments = make_client(folder).search_experiments()
    claims = [claim for experiment in experiments for claim in read_claims(experiment.tags)]
    return [claim for claim in claims if claim.name in spec_ids]


@pytest.mark.slow
def test_a_run_whose_process_dies_twice_fails_alone(tmp_path: Path) -> None:
    command = f"run --method kd,pgd_at --teacher natural --workers 2 --epochs 1 {SMALL}"
    process = start_training(command, tmp_path)
    killed: set[int] = set()
    while process.poll() is None and len(killed) < 2:
        for pid in {claim.pid for claim in claims_of("natural", tmp_path)} - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.2)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "natural seed 0: its process died; it is tried once more" in errors
    assert "natural seed 0: failed: its process died 2 times" in errors
    assert "kd seed 0: not run, its teacher" in errors
    assert re.search(r"pgd_at seed 0: clean", errors)
    assert bench(command, tmp_path).code == 0


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a new folder, in which commands run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def fixed_costs(todo: list[PlannedRun], *_: object) -> list[Cost]:
    """Replace the timed estimate of costs."""
    return [COST] * len(todo)


def test_a_failing_run_stops_no_other(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"run --method natural,pgd_at,kd --teacher natural --epochs 1 {SMALL}".split()

    def fail(*_: object) -> None:
        raise BenchError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(Natural, "loss", fail)
        patch.setattr("bench.execution.grid.run.estimate_costs", fixed_costs)
        assert cli.dispatch(command) == 1
    errors = capsys.readouterr().err
    assert re.search(r"^kd +digits +resnet8-w4 +0 +failed$", errors, flags=re.MULTILINE)
    assert "next    the same command continues what failed" in errors
    (log,) = Path("runs/logs").iterdir()
    # Of either run: in full, with the line that raised it.
    assert log.read_text().count('raise BenchError("out of luck")') == 2
    # The natural teacher fails too.
    assert errors.count("failed: out of luck") == 2
    assert re.search(r"kd seed 0: not run, its teacher resnet8-w16-natural-\w+ failed", errors)
    runs = list_runs(working_folder)
    statuses = {run.data.tags["method"]: run.info.status for run in runs}
    assert statuses == {"natural": "FAILED", "pgd_at": "FINISHED"}
    assert {run.data.tags.get("status_note") for run in runs} == {"out of luck", ""}
    assert cli.dispatch(command) == 0
    assert "3 to do, 1 already recorded" in capsys.readouterr().err
    assert {run.info.status for run in list_runs(working_folder)} == {"FINISHED"}


def test_a_network_that_learned_nothing_is_named(
    working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = 'name = "short"\nbase = "digits"\nstudents = ["resnet8-w4"]\nattacks = ["fgsm"]\n'
    Path("short.toml").write_text(suite)
    command = "run --suite short.toml --method natural --limit-train 64 --limit-test 100"
    assert cli.dispatch(f"{command} --epochs 1 --lr 1e-9".split()) == 0
    assert re.search(
        r"warning: digits resnet8-w4 natural seed 0 \(lr=1e-09\) learned nothing:"
        r" it classifies \d+\.\d % of 100 test images"
        r" correctly, no more than by chance",
        " ".join(capsys.readouterr().err.split()),
    )
    assert cli.dispatch(f"{command} --epochs 10".split()) == 0
    assert "learned nothing" not in capsys.readouterr().err


def interrupt_repetition(command: list[str], step: str) -> None:
    """Give a command with --force, and interrupt it at a step."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            cli.dispatch([*command, "--force"])


def test_an_interrupted_repetition_continues_without_force(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that was interrupted and the one that had not started both continue."""
    evaluate = records.invent_evaluations(records.MEASURED)
    monkeypatch.setattr(job, "evaluate_checkpoint", evaluate)
    monkeypatch.setattr("bench.execution.grid.run.estimate_costs", fixed_costs)
    command = f"run --method natural --seeds 0,1 --epochs 1 {SMALL}".split()
    assert cli.dispatch(command) == 0

    # The last thing that the first run does.
    interrupt_repetition(command, "bench.execution.job.add_note_and_links")
    assert len(saved_states(working_folder)) == 1
    trained_seeds: list[int] = []

    def keep_seed(trainer: Trainer, *_: object) -> None:
        trained_seeds.append(trainer.spec.seed)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_epoch", keep_seed)
        # The second run fails, since nothing saves its checkpoint.
        assert cli.dispatch(command) == 1
        assert trained_seeds == [1]
    assert cli.dispatch(command) == 0
    assert cli.dispatch(command) == 0
    errors = capsys.readouterr().err
    counts = re.findall(r"^\d to do, \d", errors, flags=re.MULTILINE)
    assert counts == ["2 to do, 0", "2 to do, 0", "2 to do, 0", "1 to do, 1", "0 to do, 2"]
    statuses = [run.info.status for run in list_runs(working_folder)]
    # The failed run begins with its first epoch again, and so as another run of the store.
    assert statuses == ["FINISHED", "FINISHED", "FINISHED", "FAILED", "FINISHED"]


def test_a_repetition_that_ended_as_it_finished_is_the_one_that_counts(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "evaluate_checkpoint", records.invent_evaluations(records.MEASURED))
    monkeypatch.setattr("bench.execution.grid.run.estimate_costs", fixed_costs)
    command = f"run --method natural --epochs 1 {SMALL}".split()
    assert cli.dispatch(command) == 0

    interrupt_repetition(command, "bench.tracking.store.TrackingStore.mark_replaced")
    first, second = list_runs(working_folder)
    client = make_client(working_folder)
    # Killed, it could not say that it was interrupted.
    client.set_terminated(second.info.run_id, FINISHED)
    assert REPLACED_TAG not in first.data.tags
    assert cli.dispatch(command) == 0
    first, second = list_runs(working_folder)
    assert first.data.tags[REPLACED_TAG] == second.info.run_id
    assert REPLACED_TAG not in second.data.tags


def test_a_full_disk_before_a_repetition_is_one_line(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bench.execution.grid.run.estimate_costs", fixed_costs)
    monkeypatch.setattr("bench.execution.grid.run.mark_for_repeat", fail)
    with pytest.raises(BenchError, match=r"^no space is left on the disk of the store$"):
        cli.dispatch(f"run --method natural --epochs 1 --force {SMALL}".split())


def test_a_run_does_not_continue_with_another_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first epoch is saved, another teacher may still take over."""
    run, context = records.plan_student("rslad"), records.make_context(tmp_path)

    def checksums_with(sha256: str) -> dict[str, str]:
        monkeypatch.setattr(cards, "find_card", lambda *_: SimpleNamespace(sha256=sha256))
        monkeypatch.setattr(run_teachers, "bring_teacher", lambda *_: None)
        return run_teachers.check_teachers(run, context.store, tmp_path)

    assert checksums_with("a") == {"robust": "a"}
    assert checksums_with("b") == {"robust": "b"}
    (tmp_path / STATE).touch()
    assert checksums_with("b") == {"robust": "b"}
    message = "another checkpoint of its teacher was used before: --force restarts"
    with pytest.raises(BenchError, match=message):
        checksums_with("a")
