"""Teachers' checkpoints travel by sha256: between machines of one server, and beside records."""

from __future__ import annotations

from pathlib import Path

import pytest
from records import make_context, run_planned

from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun, plan_runs
from bench.execution.run_teachers import bring_teacher
from bench.protocol.options import RunOptions
from bench.records.export import export_runs
from bench.records.import_ import import_records
from bench.system.errors import BenchError
from bench.system.files import sha256_of_file
from bench.teachers import cards
from bench.teachers.cards import teacher_file
from leaderboards.schema.fields import FINISHED

OPTIONS = {"student": "resnet8-w4", "limit_train": 64, "limit_test": 8, "epochs": 1}


def plan(root: Path) -> tuple[PlannedRun, PlannedRun]:
    options = RunOptions(store=root, method="rslad", seeds="0", **OPTIONS)
    teacher, student = plan_runs(options, {})
    return teacher, student


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunContext, PlannedRun]:
    """A store with the record of a teacher."""
    context = make_context(tmp_path_factory.mktemp("trained"))
    teacher, _ = plan(context.root)
    run_planned(teacher, context)
    return context, teacher


@pytest.fixture
def elsewhere(
    trained: tuple[RunContext, PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunContext:
    """Another machine on the same tracking store."""
    context, _ = trained
    monkeypatch.setenv("MLFLOW_TRACKING_URI", context.store.uri)
    return make_context(tmp_path / "elsewhere")


def test_who_lacks_a_teacher_fetches_it(
    trained: tuple[RunContext, PlannedRun], elsewhere: RunContext
) -> None:
    context, teacher = trained
    _, student = plan(elsewhere.root)
    assert student.spec.teachers["robust"] == teacher.identity
    bring_teacher(student, teacher.identity, elsewhere.store)
    brought = cards.find_card(elsewhere.root, teacher.identity)
    assert brought == cards.find_card(context.root, teacher.identity)
    assert sha256_of_file(teacher_file(elsewhere.root, teacher.identity)) == brought.sha256


def test_an_outdated_teacher_gives_way_to_that_of_the_record(
    trained: tuple[RunContext, PlannedRun], elsewhere: RunContext, tmp_path: Path
) -> None:
    _, teacher = trained
    _, student = plan(elsewhere.root)
    (tmp_path / "other").write_bytes(b"another network")
    card = cards.trained_card(teacher.spec, sha256_of_file(tmp_path / "other"))
    cards.add_teacher(elsewhere.root, tmp_path / "other", card)
    bring_teacher(student, teacher.identity, elsewhere.store)
    assert cards.find_card(elsewhere.root, teacher.identity).sha256 != card.sha256


def test_a_checkpoint_that_is_gone_or_another_is_one_line(
    trained: tuple[RunContext, PlannedRun], elsewhere: RunContext
) -> None:
    context, teacher = trained
    _, student = plan(elsewhere.root)
    run = context.store.find_run(teacher.spec, FINISHED)
    assert run
    path = context.root / "artifacts" / run.info.run_id / "artifacts" / "checkpoints" / "best.pt"
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1])
        with pytest.raises(BenchError, match="is not the one of run"):
            bring_teacher(student, teacher.identity, elsewhere.store)
        path.unlink()
        with pytest.raises(BenchError, match=r"cannot be fetched: .*`teacher train --force`"):
            bring_teacher(student, teacher.identity, elsewhere.store)
    finally:
        path.write_bytes(content)
    assert not cards.has_teacher(elsewhere.root, teacher.identity)


def test_a_teacher_comes_with_its_record(
    trained: tuple[RunContext, PlannedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context, teacher = trained
    assert export_runs(context.root, tmp_path / "out", (), teacher.spec.suite) == 0
    assert capsys.readouterr().out.endswith(".json and its checkpoint\n")
    (record,) = (tmp_path / "out").glob("*.json")
    assert record.with_suffix(".pt").exists()
    importing = (tmp_path / "new", (record,), tmp_path, "cpu", False, None)
    for _ in range(2):
        assert import_records(*importing) == 0
        assert capsys.readouterr().out.endswith(", with its checkpoint\n")
    new = make_context(tmp_path / "new")
    assert cards.find_card(new.root, teacher.identity) == cards.find_card(
        context.root, teacher.identity
    )
    run = new.store.find_run(teacher.spec, FINISHED)
    assert run
    assert new.store.client.list_artifacts(run.info.run_id, "checkpoints")


def test_another_checkpoint_beside_a_record_is_refused(
    trained: tuple[RunContext, PlannedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context, teacher = trained
    export_runs(context.root, tmp_path / "out", (), teacher.spec.suite)
    (checkpoint,) = (tmp_path / "out").glob("*.pt")
    checkpoint.write_bytes(b"another network")
    importing = (tmp_path / "new", (tmp_path / "out",), tmp_path, "cpu", False, None)
    assert import_records(*importing) == 1
    assert "is not the checkpoint of its record" in capsys.readouterr().err
    assert not cards.has_teacher(tmp_path / "new", teacher.identity)
