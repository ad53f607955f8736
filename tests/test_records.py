"""Records: out of one store and into another, what is refused and why, a folder of them as a store."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from bench import cli, models
from bench import records as records_module
from bench.datasets import data
from bench.execution import job, plan
from bench.execution.plan import PlannedRun
from bench.models import checkpoint
from bench.protocol import suites
from bench.protocol.options import RunOptions
from bench.records import reproduce, resolved
from bench.system import environment
from bench.system.errors import BenchError, UsageError
from bench.tracking.store import FINISHED, RunLogger, TrackingStore
from leaderboards.read import details, store
from leaderboards.render import export, markdown
from leaderboards.schema import record
from leaderboards.schema.fields import Curves
from leaderboards.schema.record import RecordError
from leaderboards.tables import table

NASTY = '<script>alert("x")</script>|`*\'& $x_1^2$ \\alpha{} żółw 鳥'
RESULTS = (
    Path(__file__).parents[1] / "leaderboards" / "results"
)  # of the clone: they are not installed
CODE = {"code_commit": "0" * 40, "code_dirty": "false"}
ENVIRONMENT = {"device": "cpu", "note": NASTY}
OWN = ["run_id", "artifact_uri"]  # what differs between stores

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def plant(
    tracked: TrackingStore, made: PlannedRun, survived: Any, folder: Path, **metrics: float
) -> RunLogger:
    """A finished run as bench.execution.job leaves it, but for its checkpoints."""
    run = tracked.begin(made.spec, job.run_tags(made, CODE))
    run.text("environment.json", json.dumps(ENVIRONMENT))
    for epoch in range(3):
        values = {
            "epoch": float(epoch),
            "train/kl_adv": 2.5 / (epoch + 3),
            "val/robust": 0.1 * epoch,
        }
        run.epoch(values if epoch else values | {"train/kl_adv": np.inf}, epoch)
    aa = float(np.float32(np.mean(survived)))
    run.metrics(
        {
            "test/aa": aa,
            "test/worst": aa,
            "test/clean": 0.9,
            "test/n": 90,
            "test/aa_n": survived.size,
            **metrics,
        }
    )
    path = folder / "verdicts_best_aa.npz"
    np.savez_compressed(path, clean=survived, robust_aa=survived)
    run.file(path, "verdicts")
    run.tag("sha256.best", made.spec.id * 4)
    run.tags(
        {
            "teacher_sha256": json.dumps(dict.fromkeys(made.spec.teachers, "ab" * 32)),
            "training_path": "captured",
        }
    )
    run.tag("flags", json.dumps({"softmax-output": NASTY} if made.spec.seed else {}))
    run.end(FINISHED)
    return run


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two methods of two seeds, their teacher, and a run whose every name is nasty."""
    folder, rng = tmp_path_factory.mktemp("origin"), np.random.default_rng(0)
    tracked = TrackingStore(folder)
    options = RunOptions(method="rslad,ard", student="resnet8-w4", seeds="0,1", store=folder)
    cells = plan.plan_runs(options, {})
    spec = dataclasses.replace(
        cells[-1].spec,
        dataset=NASTY,
        arch=NASTY,
        method=NASTY,
        teachers={"robust": f"{NASTY}-0"},
        hyper={"base": NASTY},
    )
    for number, made in enumerate(
        [*cells, PlannedRun(spec, cells[-1].method, NASTY, NASTY, ("lr",))]
    ):
        plant(
            tracked,
            made,
            rng.random(61) < 0.4 + 0.05 * number,
            folder,
            **{"cost/train_seconds": 60.0 + number},
        )
    (folder / "verdicts_best_aa.npz").unlink()
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TrackingStore(tmp_path_factory.mktemp("empty")).root


@pytest.fixture
def home(empty: Path, tmp_path: Path) -> Path:
    """A fresh store, copied because MLflow takes seconds to make one."""
    return Path(shutil.copytree(empty, tmp_path / "home"))


@pytest.fixture(scope="module")
def records(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    assert (
        cli.dispatch(["export", "--suite", "digits", "--store", str(origin), "--out", str(folder)])
        == 0
    )
    return folder


def uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def take(folder: Path, *sources: Path, more: tuple[str, ...] = ()) -> int:
    return cli.dispatch(["import", *map(str, sources), "--store", str(folder), *more])


def tables(runs: pd.DataFrame) -> str:
    """Every table of the runs, and all numbers behind it but for the ids of runs."""
    found = table.sections(runs)
    content = json.loads(export.render(found))
    for group in (
        group for suite in content["suites"] for group in (*suite["tasks"], suite["teachers"])
    ):
        for row in group["rows"]:
            assert row.pop("runs")
    return markdown.render(runs, None, found) + json.dumps(content)


def curves_by_spec(source: str | Path, runs: pd.DataFrame) -> dict[str, Curves]:
    spec = dict(zip(runs["run_id"], runs["spec_id"], strict=True))
    return {spec[run]: curves for run, curves in details.curves(source, runs).items()}


def test_another_store_gives_the_same_leaderboard(origin: Path, records: Path, home: Path) -> None:
    assert take(home, records) == 0
    sources: tuple[str | Path, ...] = uri(origin), uri(home), records
    first, *others = (store.collect(source) for source in sources)
    assert len(first) == 6
    assert first["param/hyper.base"].isin([NASTY]).sum() == first["command"].eq(NASTY).sum() == 1
    curves, *same = (
        curves_by_spec(source, frame)
        for source, frame in zip(sources, (first, *others), strict=True)
    )
    points = [len(steps) for found in curves.values() for steps, _ in found.values()]
    assert sum(points) == 6 * 5  # the infinite loss of the first epoch is none
    for frame, lines in zip(others, same, strict=True):
        pd.testing.assert_frame_equal(frame.drop(columns=OWN), first.drop(columns=OWN))
        assert lines == curves
        assert [details.environment(run) for run in frame.to_dict("records")] == [ENVIRONMENT] * 6
        assert tables(frame) == tables(first)
        assert frame.attrs == {"problems": []}
    assert tables(first).count('"rank": 1') >= 2


def test_records_are_small_and_readably_named(records: Path) -> None:
    names = sorted(path.name for path in records.iterdir())
    assert len(names) == 6
    assert sum(name.startswith("digits@3-digits-resnet8-w4-rslad-seed0-") for name in names) == 1
    assert all(name.isascii() and not set(name) & set("/\\<>\"'|*?: ") for name in names)
    for path in records.iterdir():
        assert path.stat().st_size < 10_000
        assert record.read(path).text() == path.read_text(encoding="utf-8")


def test_again_is_skipped_and_other_numbers_are_refused(
    records: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = min(records.glob("*rslad*"))
    assert take(home, one) == take(home, one) == 0
    assert "recorded already" in capsys.readouterr().out
    other = tmp_path / "other.json"
    for change in ({"metrics": {"test/clean": 0.91}}, {"checksums": {"best": "a" * 64}}):
        content = json.loads(one.read_text())
        other.write_text(
            json.dumps(
                {**content, **{name: content[name] | values for name, values in change.items()}}
            )
        )
        assert take(home, other) == 1
        said = capsys.readouterr().err
        assert "same spec and other numbers: " in said
        assert said.count("\n") == 1
    assert len(store.collect(uri(home))) == 1


def bare(content: dict[str, Any]) -> str:
    return json.dumps(content)


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], str]:
    """A record in which the value at `path` is another one."""

    def changed(content: dict[str, Any]) -> str:
        inner = content
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        return json.dumps(content)

    return changed


def suite(name: str) -> Callable[[dict[str, Any]], str]:
    """A record of another suite, whose id is right."""

    def changed(content: dict[str, Any]) -> str:
        content["spec"]["suite"] = name
        content["spec_id"] = record.Spec(**content["spec"]).id
        return json.dumps(content)

    return changed


def extra(content: dict[str, Any]) -> str:
    content["spec"]["unheard"] = 1
    content["spec_id"] = record.Spec(**content["spec"]).id
    return json.dumps(content)


BAD: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "no JSON": (lambda _: "hello", "not JSON: "),
    "empty": (lambda _: "", "not JSON: "),
    "truncated": (lambda content: bare(content)[:-40], "not JSON: EOF"),
    "a list": (lambda content: f"[{bare(content)}]", "Input should be an object"),
    "deep": (lambda _: "[" * 100_000, "not JSON: recursion"),
    "large": (lambda _: " " * 2_000_000, "larger than 1,000,000 bytes"),
    "NaN": (put("metrics", "test/clean", value=float("nan")), "not JSON: "),
    "infinite": (
        lambda content: bare(content).replace('"device": "cpu"', '"device": 1e999'),
        "not JSON: ",
    ),
    "other schema": (
        put("schema", "name", value="x"),
        "schema.name: Input should be 'robust-distill-bench/record'",
    ),
    "other version": (put("schema", "version", value=2), "schema.version: Input should be 1"),
    "no spec": (put("spec", value={}), "spec.suite: Field required"),
    "unknown field": (put("more", value=1), "more: Extra inputs are not permitted"),
    "number as text": (
        put("metrics", "test/clean", value="0.9"),
        "metrics.test/clean: Input should be a valid number",
    ),
    "path as id": (put("run_id", value="../../etc/passwd"), "run_id: String should match"),
    "spec changed": (put("spec", "seed", value=7), "spec_id is "),
    "unknown in spec": (extra, "spec: it has fields or values that this version does not write"),
    "stale": (suite("digits@2"), "stale protocol version: digits@2, this checkout has digits@3"),
    "newer": (suite("digits@99"), "newer protocol version: digits@99, this checkout has digits@3"),
    "unknown suite": (suite("mine@1"), "unknown suite 'mine'"),
    "no version": (put("spec", "suite", value="digits@3x"), "spec.suite: String should match"),
    "another 3": (put("spec", "suite", value="digits@03"), "spec.suite: String should match"),
    "a long version": (
        put("spec", "suite", value="digits@" + "9" * 5000),
        "spec.suite: String should match",
    ),
    "no seed": (put("spec", "seed", value=-1), "spec.seed: Input should be greater"),
    "many seeds": (put("spec", "seed", value=10**30), "spec.seed: "),
    "deep flags": (put("tags", "flags", value="[" * 100_000), "tags.flags: not a JSON object"),
    "like a heading": (
        put("metrics", "test/AutoAttack", value=0.99),
        "metrics: 'test/AutoAttack' does not belong",
    ),
    "like a rate": (put("curves", "lrX", value=[[0, 0.1]]), "curves: 'lrX' is none"),
    "accuracy changed": (put("metrics", "test/aa", value=0.99), "verdicts: AutoAttack accuracy "),
    "no accuracy": (
        put("metrics", "test/clean", value=1.2),
        "metrics: test/clean = 1.2 is no accuracy",
    ),
    "verdicts gone": (put("verdicts", value=None), "there must be both or neither"),
    "too few bits": (put("verdicts", "survived", value="AAA="), "verdicts: 16 bits for 61 images"),
    "no base64": (put("verdicts", "survived", value="???"), "base64"),
    "many images": (
        put("verdicts", "images", value=10**12),
        "verdicts.images: Input should be less than",
    ),
    "checksum": (put("checksums", "best", value="abc"), "checksums.best: String should match"),
    "flags": (put("tags", "flags", value="{"), "tags.flags: not a JSON object"),
    "teachers": (
        put("tags", "teacher_sha256", value="[]"),
        "tags.teacher_sha256: not a JSON object",
    ),
    "flags of no letters": (
        put("tags", "flags", value='{"a": "\\ud800"}'),
        "tags.flags: not a JSON object",
    ),
    "an endless epoch": (
        put("curves", "val/robust", value=[[10**400, 0.5]]),
        "curves.val/robust.0.0: ",
    ),
    "tag": (put("tags", "mlflow.user", value="me"), "tags: 'mlflow.user' does not belong there"),
    "metric": (put("metrics", "<b>", value=1.0), "metrics: '<b>' does not belong there"),
    "epochs": (
        put("curves", "val/robust", value=[[1, 0.5], [0, 0.5]]),
        "its epochs are not in order",
    ),
    "for MLflow": (put("metrics", "cost/" + 300 * "b", value=1.0), "MLflow refuses it: "),
}


def test_one_network_is_not_two_seeds(
    records: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor two methods; but what was attacked otherwise as well is another record of the same."""
    (path, *_) = sorted(records.glob("*ard-seed*"))
    assert take(home, path) == 0
    (tmp_path / "a.json").write_bytes(path.read_bytes())
    for place, (name, value) in enumerate({"seed": 77, "method": "rslad", "limit_aa": 61}.items()):
        content = json.loads(path.read_text()) | {"run_id": f"{place:032}"}
        content["spec"][name] = value
        content["spec_id"] = record.Spec(**content["spec"]).id
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert take(home, tmp_path / f"{name}.json") == (name != "limit_aa")
        assert ("its checkpoint is that of run " in capsys.readouterr().err) == (name != "limit_aa")
    problems = store.collect(tmp_path).attrs["problems"]
    left_out = "is left out: a.json has the same checkpoint, of another method, network or seed"
    assert problems == [f"method.json {left_out}", f"seed.json {left_out}"]


def test_an_import_that_was_stopped_leaves_nothing_to_go_on_with(
    records: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path, *_) = sorted(records.glob("*ard-seed*"))
    spec = resolved(record.read(path))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records_module, "fill", stop)
        patch.setattr(MlflowClient, "delete_run", lambda *_: None)  # as SIGKILL would
        with pytest.raises(KeyboardInterrupt):
            take(home, path)
    there = TrackingStore(home)
    halves = [there.experiment(spec.suite)], f"tags.importing = '{spec.id}'"
    assert len(there.client.search_runs(*halves)) == 1
    assert there.find(spec, "RUNNING") is None
    assert take(home, path) == 0
    assert not there.client.search_runs(*halves)
    assert len(store.collect(uri(home))) == 1


@pytest.fixture(scope="module")
def refused(
    empty: Path, records: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], str]:
    """What is printed as errors and as results when every bad record is imported together with a good one."""
    folder, home = tmp_path_factory.mktemp("bad"), tmp_path_factory.mktemp("home")
    shutil.copytree(empty, home, dirs_exist_ok=True)
    good, one = sorted(records.glob("*ard-seed*"))
    for number, (change, _) in enumerate(BAD.values()):
        (folder / f"bad{number}.json").write_text(
            change(json.loads(one.read_text())), encoding="utf-8"
        )
    shutil.copy(good, folder / "good.json")
    with (
        contextlib.redirect_stderr(io.StringIO()) as errors,
        contextlib.redirect_stdout(io.StringIO()) as results,
    ):
        assert take(home, folder) == 1
    assert len(store.collect(uri(home))) == 1
    return errors.getvalue().replace(f"{folder}/", "").splitlines(), results.getvalue()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused_in_one_line(name: str, refused: tuple[list[str], str]) -> None:
    (line,) = (
        line for line in refused[0] if line.startswith(f"error: bad{[*BAD].index(name)}.json: ")
    )
    assert BAD[name][1] in line


def test_the_others_are_taken_in(refused: tuple[list[str], str]) -> None:
    errors, results = refused
    assert len(errors) == len(BAD)
    assert results.count("\n") == 1
    assert "good.json: taken in as run " in results


def test_what_is_not_there(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert take(home, tmp_path / "none.json") == 1
    assert (
        capsys.readouterr().err == f"error: {tmp_path / 'none.json'}: No such file or directory\n"
    )
    with pytest.raises(BenchError, match="no record, a file NAME"):
        take(home, home)


def test_export_names_what_it_cannot_write(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(origin, copy)
    ids = list(store.collect(uri(copy))["run_id"][:4])
    (copy / "artifacts" / ids[1] / "artifacts" / "spec.json").write_text("{")
    (copy / "artifacts" / ids[2] / "artifacts" / "verdicts" / "verdicts_best_aa.npz").unlink()
    (copy / "artifacts" / ids[3] / "artifacts" / "environment.json").unlink()
    words = ["export", *ids, "f" * 32, "--store", str(copy), "--out", str(tmp_path / "out")]
    assert cli.dispatch(words) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: {ids[1]}: its spec.json is missing or damaged",
        f"error: {ids[2]}: its verdicts on single images cannot be read",
        f"error: {'f' * 32}: no finished run of a suite has this id",
    ]
    assert len(list((tmp_path / "out").iterdir())) == 2
    for wrong in ([], [ids[0], "--suite", "digits"]):
        with pytest.raises(UsageError, match="name runs by their MLflow ids"):
            cli.dispatch(["export", *wrong, "--store", str(copy), "--out", str(tmp_path / "out")])


def test_an_export_that_fails_leaves_the_earlier_file(
    origin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "export",
        store.collect(uri(origin))["run_id"][0],
        "--store",
        str(origin),
        "--out",
        str(tmp_path),
    ]
    assert cli.dispatch(words) == 0
    (made,) = tmp_path.iterdir()
    before = made.read_bytes()

    def half(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(text[: len(text) // 2].encode())
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        assert cli.dispatch(words) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


# A folder as a store.


def test_a_corrupt_record_is_left_out_and_named(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(records, folder)
    first, second, *_ = sorted(folder.iterdir())
    first.write_text("{")
    shutil.copy(second, folder / "zz.json")
    (folder / "README.md").write_text("no record")
    runs = store.collect(folder)
    assert len(runs) == 5
    problems = runs.attrs["problems"]
    assert problems[0].startswith(f"{first.name} is left out: not JSON")
    assert problems[1].startswith(f"zz.json is left out: {second.name} is the record of ")
    assert len(problems) == 2
    assert store.collect(folder, "digits@2").empty
    assert details.curves(folder, runs).keys() == {*runs["run_id"]}
    words = [
        "leaderboard",
        "--records",
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--store",
        str(tmp_path / "none"),
    ]
    assert cli.dispatch(words) == 0
    assert "rslad" in (tmp_path / "out" / "leaderboard.md").read_text()
    assert not (tmp_path / "none").exists()


def test_no_folder_is_an_error_and_an_empty_one_an_empty_store(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match="there is no folder"):
        store.collect(tmp_path / "none")
    runs = store.collect(tmp_path)
    assert runs.empty
    assert details.curves(tmp_path, runs) == {}


def test_the_repositorys_own_records_are_valid() -> None:
    found = {path: record.read(path) for path in sorted(RESULTS.glob("*.json"))}
    assert found
    assert [path.name for path in found] == [each.name for each in found.values()]
    assert len({each.spec_id for each in found.values()}) == len(found)
    for suite, _, version in (each.spec.suite.partition("@") for each in found.values()):
        assert (
            int(version) <= suites.SUITES[suite].version
        )  # a version of the future would make all others older ones
    assert store.collect(RESULTS).attrs["problems"] == []


def test_two_teachers_have_one_name_whatever_their_order() -> None:
    found = record.read(next(RESULTS.glob("digits@*-mtard-*.json")))
    assert len(found.spec.teachers) == 2
    spec = resolved(found)
    turned = dataclasses.replace(spec, teachers=dict(reversed(spec.teachers.items())))
    assert turned.id == spec.id
    names = {each.teacher for each in (spec, turned)} | {found.row()["teacher"]}
    assert names == {"resnet8-w16-trades + resnet8-w16-natural"}


# Evaluation again.


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with the run of a network that gets every test image wrong, so that AutoAttack is quick; and its record."""
    folder = tmp_path_factory.mktemp("judged")
    made = plan.plan_runs(
        RunOptions(method="natural", student="resnet8-w4", seeds="0", limit_test=6, store=folder),
        {},
    )[0]
    made = dataclasses.replace(made, spec=dataclasses.replace(made.spec, attacks=("fgsm", "aa")))
    images = data.load("digits", "", limit_test=6)
    torch.manual_seed(0)
    net = models.build("resnet8-w4", images.info).eval()
    with torch.no_grad():
        next(layer for layer in net.modules() if isinstance(layer, torch.nn.Linear)).bias[
            min({*range(10)} - {*images.test.y.tolist()})
        ] = 100
    checkpoint.save(folder / "best.pt", {"state_dict": net.state_dict()})
    (folder / "verdicts").mkdir()
    stem = folder / "verdicts" / "verdicts_best"
    values, _ = job.evaluate_checkpoint(net, made.spec, images.test, True, stem, lambda *_: None)
    assert values["clean"] == values["aa"] == 0
    run = TrackingStore(folder).begin(made.spec, job.run_tags(made, CODE))
    here = environment.describe_environment(torch.device("cpu")) | job.describe(images)
    run.text("environment.json", json.dumps(here))
    run.metrics(
        {f"test/{name}": value for name, value in values.items() if not name.startswith("cost/")}
    )
    run.file(folder / "best.pt", "checkpoints")
    run.file(stem.with_name("verdicts_best_aa.npz"), "verdicts")
    run.tag("sha256.best", checkpoint.sha256_of(folder / "best.pt"))
    run.end(FINISHED)
    assert (
        cli.dispatch(["export", run.run_id, "--store", str(folder), "--out", str(folder / "out")])
        == 0
    )
    (path,) = (folder / "out").iterdir()
    return folder, path


def test_verified_where_the_checkpoint_is(
    judged: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = judged
    assert take(folder, path, more=("--verify", "--device", "cpu")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{path}: reproduced 6 numbers; verdicts of AutoAttack differ on 0 images"
    assert "recorded already" in said[1]


def test_verified_with_a_file_and_not_without(
    judged: tuple[Path, Path], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = judged
    verify = ("--verify", "--device", "cpu")
    assert take(home, path, more=verify) == 1
    assert "not verified: no checkpoint " in capsys.readouterr().err
    other = tmp_path / "other.pt"
    checkpoint.save(other, {"state_dict": {}})
    assert take(home, path, more=(*verify, "--checkpoint", str(other))) == 1
    assert "another or damaged file" in capsys.readouterr().err
    assert store.collect(uri(home)).empty
    assert take(home, path, more=(*verify, "--checkpoint", str(folder / "best.pt"))) == 0
    assert "taken in as run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            put("metrics", "test/clean", value=1 / 6),
            "not reproduced: test/clean is 0.0000 here, recorded 0.1667",
        ),
        (put("metrics", "test/pgd20", value=0.0), "not reproduced: test/pgd20 is in one of "),
        (
            put("environment", "data", value={"sha256": "0"}),
            "not verified: it states other data than those here",
        ),
        (
            put("tags", "flags", value="{}"),
            "not reproduced: it does not have the flag planted, a reason",
        ),
    ],
)
def test_what_is_not_reproduced_is_refused(
    judged: tuple[Path, Path],
    change: Callable[[dict[str, Any]], str],
    why: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, path = judged
    bad = tmp_path / "bad.json"
    bad.write_text(change(json.loads(path.read_text())))
    words = ("--verify", "--device", "cpu", "--checkpoint", str(folder / "best.pt"))
    if "planted" in why:
        evaluate = job.evaluate_checkpoint
        monkeypatch.setattr(
            job,
            "evaluate_checkpoint",
            lambda *given: (evaluate(*given)[0], {"planted": "a reason"}),
        )
    assert take(home, bad, more=words) == 1
    assert why in capsys.readouterr().err
    assert store.collect(uri(home)).empty


@pytest.mark.parametrize(("share", "may"), [(0.0, 0), (reproduce.ELSEWHERE, 1), (0.02, 4)])
def test_as_many_images_may_differ_as_are_allowed(records: Path, share: float, may: int) -> None:
    found = record.read(min(records.iterdir()))
    survived = np.arange(200) < 100
    metrics = {"test/n": 200.0, "test/aa_n": 200.0, "test/aa": 0.5}
    told = found.model_copy(
        update={"metrics": metrics, "verdicts": record.Verdicts(**record.packed(survived))}
    )
    for turned in range(6):
        again = survived.copy()
        again[100 - turned : 100 + turned] ^= True  # as many either way, so that the accuracy stays
        if 2 * turned <= may:
            assert f"differ on {2 * turned} images" in reproduce.compare(
                told, metrics, again, share
            )
        else:
            with pytest.raises(RecordError, match=f"differs on {2 * turned} of 200 images"):
                reproduce.compare(told, metrics, again, share)
    reproduce.compare(told, metrics | {"test/aa": 0.5 - may / 200}, survived, share)
    with pytest.raises(RecordError, match="test/aa is "):
        reproduce.compare(told, metrics | {"test/aa": 0.5 - (may + 1) / 200}, survived, share)
