"""One record: it says what its MLflow run says, one module knows the names, and both are synced."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from records import make_context, plan_student, run_planned

from bench import cli
from bench.execution.job import RunContext
from bench.records.sync import sync_records
from bench.tracking.store import TrackingStore
from leaderboards.read.records import collect, read_record
from leaderboards.schema import fields, metrics
from leaderboards.schema.fields import Artifact, Tag
from leaderboards.schema.record import Record

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "leaderboards" / "schema"
SOURCES = [
    path
    for name in ("bench", "methods", "attacks", "leaderboards")
    for path in sorted((ROOT / name).rglob("*.py"))
    if SCHEMA not in path.parents
]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    """Return the context of a store with one real, short run."""
    context = make_context(tmp_path_factory.mktemp("trained"))
    run_planned(plan_student(), context)
    return context


@pytest.fixture
def root(trained: RunContext, tmp_path: Path) -> Path:
    """Return a copy of that store."""
    return Path(shutil.copytree(trained.root, tmp_path / "copy"))


def only_record(folder: Path) -> Record:
    (path,) = folder.glob("*.json")
    return read_record(path)


def test_record_and_run_say_the_same(trained: RunContext) -> None:
    record = only_record(trained.store.records)
    run = trained.store.client.get_run(record.run_id)
    tags, measured = dict(run.data.tags), dict(run.data.metrics)
    assert run.info.status == fields.FINISHED
    assert run.info.start_time == record.start_time
    assert {tag: tags[tag] for tag in record.tags} == record.tags
    assert set(record.tags) == {tag for tag in fields.RECORD_TAGS if tag in tags}
    assert {tag: tags[tag] for tag in fields.IDENTITY_TAGS} == record.spec.identity_tags
    assert {name: tags[tag] for name, tag in fields.CHECKSUM_TAGS.items()} == record.checksums
    assert run.data.params == {name: str(value) for name, value in record.spec.flat().items()}
    for name in record.metrics:
        assert measured.pop(name) == record.metrics[name], name
    for name, curve in record.curves.items():
        history = trained.store.client.get_metric_history(record.run_id, name)
        assert [(point.step, point.value) for point in history] == [*zip(*curve, strict=True)], name
        del measured[name]
    assert set(measured) == {"epoch"}, "MLflow has nothing that the record lacks"


def test_files_of_record_and_run_are_the_same(trained: RunContext, tmp_path: Path) -> None:
    (path,) = trained.store.records.glob("*.json")
    record = read_record(path)
    client = trained.store.client

    def artifact(name: str) -> Path:
        return Path(client.download_artifacts(record.run_id, name, str(tmp_path)))

    assert artifact(Artifact.RECORD).read_bytes() == path.read_bytes()
    assert json.loads(artifact(Artifact.SPEC).read_text()) == json.loads(record.spec.json())
    assert json.loads(artifact(Artifact.ENVIRONMENT).read_text()) == record.environment
    assert record.schema_.version == 3
    assert record.metrics[metrics.CLEAN] == 0.875
    assert record.metrics[metrics.PARAMETERS] > 1000
    assert record.classes is not None
    assert record.classes.images == record.metrics[metrics.NUM_IMAGES] == 8
    by_class = record.accuracies_by_class
    assert set(by_class) == {metrics.CLEAN, metrics.RANK_METRIC}
    clean = by_class[metrics.CLEAN].values()
    assert min(clean) <= 0.875 <= max(clean)


METRIC = re.compile(r"(train|val|cost|class|test(_(last|ema|swa))?)/")
# A tag's name that is also a name of an option or of a field of other documents is no secret.
SHARED_TAGS = {
    *(Tag.ROLE, Tag.DATASET, Tag.METHOD, Tag.STUDENT, Tag.TEACHER, Tag.SEED, Tag.VARIANT),
    *(Tag.SETS, Tag.COMMAND, Tag.FLAGS, Tag.SPEC_ID),
}
TAGS = {str(tag) for tag in Tag} - SHARED_TAGS
FILES = {str(file) for file in Artifact if "." in file} | {f"{Artifact.CHECKPOINTS}/"}


def spelled_names(path: Path) -> Iterator[str]:
    """Yield the names of metrics, tags and artifacts in the strings of a file, not its texts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in documentation:
            continue
        text = node.value
        if not isinstance(text, str) or " " in text:
            continue
        if METRIC.match(text) or text.startswith("sha256.") or text in TAGS or text in FILES:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {text}"


def test_names_are_spelled_in_the_schema_alone() -> None:
    assert [name for path in SOURCES for name in spelled_names(path)] == []


TEMPLATES = sorted((ROOT / "leaderboards").rglob("*.j2"))
QUOTED = re.compile(r"[\"']([^\"' ]+)[\"']")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_spell_no_name(path: Path) -> None:
    names = QUOTED.findall(path.read_text(encoding="utf-8"))
    assert [name for name in names if METRIC.match(name) or name in TAGS | FILES] == []
    assert "sha256." not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["test/aa", "val/", "sha256.best", "code_dirty", "record.json"])
def test_a_spelled_name_is_noticed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "x.py").write_text(f'"""test/aa"""\nx = {text!r}\ny = f"{text}{{x}}"\n')
    assert len(list(spelled_names(tmp_path / "x.py"))) == 2


def test_a_run_without_its_record_is_fetched(root: Path) -> None:
    record = only_record(root / "records")
    shutil.rmtree(root / "records")
    synced = sync_records(root)
    assert synced.problems == []
    assert only_record(synced.folder) == record


def test_a_record_that_was_changed_is_fetched_again(root: Path) -> None:
    (path,) = (root / "records").glob("*.json")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"natural", b"naturel"))
    assert sync_records(root).problems == []
    assert path.read_bytes() == content


def become_pipe(path: Path) -> None:
    os.mkfifo(path)


def become_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("become", [become_pipe, become_loop])
def test_what_is_no_file_is_replaced_by_its_runs_record(
    root: Path, become: Callable[[Path], None]
) -> None:
    (path,) = (root / "records").glob("*.json")
    record = read_record(path)
    path.unlink()
    become(path)
    assert sync_records(root).problems == []
    assert read_record(path) == record


def test_a_folder_in_place_of_a_record_is_said(root: Path) -> None:
    (path,) = (root / "records").glob("*.json")
    run_id = read_record(path).run_id
    path.unlink()
    path.mkdir()
    (line,) = sync_records(root).problems
    assert line == f"run {run_id}: cannot write to {str(path.parent)!r}: Is a directory"


def test_a_name_with_invisible_letters_makes_one_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "\u202eabcd", "--store", str(root), "--out", str(root / "out")]
    assert cli.dispatch(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


def test_a_copied_store_shows_its_own_checkpoints(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = only_record(root / "records")
    assert cli.dispatch(["show", record.run_id, "--json", "--store", str(root)]) == 0
    address = json.loads(capsys.readouterr().out)["checkpoints"]["best"]["address"]
    assert Path(address).is_relative_to(root)


def test_a_record_whose_run_is_gone_is_shown_and_said(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = only_record(root / "records")
    TrackingStore(root).client.delete_run(record.run_id)
    words = ["leaderboard", "--store", str(root), "--out", str(tmp_path / "site")]
    assert cli.dispatch(words) == 0
    line = "records without a finished run in sqlite:///"
    assert line in capsys.readouterr().err
    assert line in (tmp_path / "site" / "index.html").read_text()
    assert (tmp_path / "site" / "runs" / f"{record.run_id}.html").exists()


def test_a_finished_run_that_has_no_record_is_said_until_it_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Not a copy: MLflow would write into the artifacts of the original.
    root = tmp_path
    run_planned(plan_student(), make_context(root))
    before = only_record(root / "records")
    store = TrackingStore(root)
    store.client.delete_tag(before.run_id, Tag.RECORD)
    shutil.rmtree(root / "records")
    (line,) = sync_records(root).problems
    assert "finished runs without a record are left out: 1; " in line
    assert "export --from-mlflow" in line
    assert cli.dispatch(["export", "--from-mlflow", "--store", str(root)]) == 0
    assert "records/digits@3" in capsys.readouterr().out
    assert sync_records(root).problems == []
    after = only_record(root / "records")
    assert after.classes is not None
    assert after.classes.predictions is None, "they were not kept"
    ignored = {"classes", "schema_"}
    assert after.model_dump(exclude=ignored) == before.model_dump(exclude=ignored)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff"])
def test_a_damaged_record_artifact_is_said(root: Path, damage: bytes) -> None:
    record = only_record(root / "records")
    shutil.rmtree(root / "records")
    (root / "artifacts" / record.run_id / "artifacts" / Artifact.RECORD).write_bytes(damage)
    problems = sync_records(root).problems
    assert problems == [f"run {record.run_id}: its record is not the file of its checksum"]


def test_runs_that_did_not_finish_are_counted(root: Path) -> None:
    run = plan_student(seed=1)
    store = TrackingStore(root)
    store.start_run(run.spec, {**run.spec.identity_tags, "variant": "", "suite": "digits@3"})
    assert sync_records(root).problems == ["runs that did not finish are left out: 1 RUNNING"]


def test_a_store_without_mlflow_is_not_made(tmp_path: Path) -> None:
    synced = sync_records(tmp_path / "none")
    assert (synced.problems, synced.folder.exists()) == ([], False)
    assert not list(tmp_path.iterdir())


def test_two_stores_on_one_server_share_records(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts: each fetches what the other one has recorded."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db?timeout=20")
    other = tmp_path / "other"
    synced = sync_records(other)
    assert synced.folder.parent == other
    assert synced.folder.name.startswith("records-")
    runs = collect(synced.folder)
    assert runs["run_id"].tolist() == [only_record(root / "records").run_id]
