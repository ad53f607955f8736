"""Test `analyze`: which runs, what is kept of them, what is missing, many at once, interruption."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

import bench
from bench import cli
from bench.analysis import grid, group, job
from bench.analysis.measures import examples
from bench.analysis.measures.findings import GapError
from bench.analysis.measures.transferability import Exposure, expose, summarise
from bench.models import checkpoint
from bench.records import trained
from bench.system.errors import BenchError
from bench.teachers import cards
from bench.tracking.store import TrackingStore, artifact_path, tracking_uri
from leaderboards.read.records import read_record
from leaderboards.schema.analysis import (
    ANALYSIS,
    BY_EPS,
    CORRELATION,
    GROUPS,
    TSNE,
    measure_name,
    metrics_of_group,
    split_name,
)
from leaderboards.schema.record import Record, copy_record
from methods.base import Net

SUITE = """
name = "tiny"
base = "digits"
students = ["resnet8-w4"]
attacks = ["pgd20"]
limit_train = 256
limit_test = 60
training = { epochs = 6 }
teachers.robust.training = { epochs = 6 }
teachers.robust.arch = "resnet8-w8"
"""


def run_bench(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([*words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of two trained students: one with a teacher, one without."""
    folder = tmp_path_factory.mktemp("analyze")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        Path("tiny.toml").write_text(SUITE)
        assert run_bench("run", "--suite", "tiny.toml", "--method", "rslad,natural") == 0
    return folder


@pytest.fixture(scope="module")
def analysed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store in which both students are analysed; tests only read it."""
    folder = tmp_path_factory.mktemp("analysed") / "here"
    shutil.copytree(finished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        assert run_bench("analyze") == 0
    return folder / "runs"


@pytest.fixture
def store(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of that folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return Path("runs")


@pytest.fixture
def copied(analysed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the store in which both students are analysed."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(analysed.parent, tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    return Path("runs")


def open_context(store: Path) -> job.AnalysisContext:
    return job.AnalysisContext(TrackingStore(store), Path("data"), torch.device("cpu"))


def read(store: Path) -> dict[str, Record]:
    """Return the students' records by method."""
    records = trained.read_records(store)
    return {record.spec.method: record for record in records if record.spec.role == "student"}


def measures(record: Record) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if name.startswith(ANALYSIS)}


def test_all_groups_are_in_record_run_and_artifacts(
    analysed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in read(analysed).values():
        assert record.analysis
        values = measures(record)
        for name in GROUPS.keys() - {"tasks"}:
            assert metrics_of_group(values, name), name
        assert all(split_name(name) for name in values)
        assert record.analysis.gaps.keys() == {"tasks"}
        for owner in ("student", "teacher"):
            matrix = record.analysis.matrices[f"{CORRELATION}/{owner}/clean"]
            assert len(matrix) == len(matrix[0]) == 10
        assert dict(record.analysis.lines[BY_EPS])[0.0] == pytest.approx(
            record.metrics["test/clean"], abs=1e-4
        )
        assert record.analysis.points[f"{TSNE}/clean"]
        client = MlflowClient(tracking_uri(analysed))
        run = client.get_run(record.run_id)
        recorded = {k: v for k, v in run.data.metrics.items() if k.startswith(ANALYSIS)}
        assert recorded == values
        # Not by MLflow, which remembers where it found the run of another copy.
        figures = artifact_path(analysed, record.run_id, "analysis").iterdir()
        assert {path.name for path in figures} == {
            *("correlations.png", "tsne.png", "loss-surface.png")
        }
    run_id = read(analysed)["rslad"].run_id
    capsys.readouterr()
    assert run_bench("show", run_id, "--store", str(analysed)) == 0
    assert "CKA, features, adversarial" in capsys.readouterr().out


def test_students_are_judged_on_each_others_examples(analysed: Path) -> None:
    records = read(analysed)
    rslad, natural = records["rslad"], records["natural"]
    assert rslad.analysis
    assert natural.analysis
    teacher = rslad.analysis.teacher_sha256[:16]
    keys = {rslad.spec_id, natural.spec_id, teacher}
    assert rslad.analysis.against.keys() == natural.analysis.against.keys() == keys
    # On its own examples it has its accuracy under PGD-20: both take the same images.
    own = rslad.analysis.against[rslad.spec_id]
    assert own == pytest.approx(rslad.metrics["test/pgd20"], abs=1e-4)
    resists = measure_name("transferability", "resists")
    assert rslad.metrics[resists] == pytest.approx(
        rslad.analysis.against[natural.spec_id], abs=1e-4
    )


def test_a_method_without_teacher_is_compared_with_the_suites(analysed: Path) -> None:
    records = read(analysed)
    rslad, natural = records["rslad"].analysis, records["natural"].analysis
    assert rslad
    assert natural
    assert rslad.its_own
    assert not natural.its_own
    assert rslad.teacher_sha256 == natural.teacher_sha256
    assert rslad.teacher_sha256 == records["rslad"].teacher_sha256["robust"]


def test_what_is_analysed_is_skipped_and_forced_again(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = next(trained.row_address(r) for r in read(store).values() if r.spec.method == "rslad")
    assert run_bench("analyze", row) == 0
    before = read(store)
    assert not before["natural"].analysis
    capsys.readouterr()
    assert run_bench("analyze", row) == 0
    assert "0 to analyse, 1 already analysed" in capsys.readouterr().err
    assert read(store) == before
    assert run_bench("analyze", row, "--force") == 0
    again = read(store)["rslad"]
    assert again.metrics == before["rslad"].metrics
    assert again.analysis == before["rslad"].analysis


def test_a_teacher_that_is_gone_is_a_gap(store: Path) -> None:
    shutil.rmtree(store / "teachers")
    assert run_bench("analyze") == 0
    for record in read(store).values():
        assert record.analysis
        assert "no teacher" in record.analysis.gaps["structure"]
        assert record.analysis.teacher_sha256 == ""
        values = measures(record)
        assert not metrics_of_group(values, "structure")
        assert metrics_of_group(values, "features")
        assert measure_name("gradients", "sparsity", "clean") in values
        assert measure_name("gradients", "cosine", "clean") not in values


def test_another_teacher_than_the_students_own_is_a_gap(store: Path) -> None:
    (path,) = (store / "teachers").glob("*trades*.pt")
    card = path.with_suffix(".json")
    sha256 = read(store)["rslad"].teacher_sha256["robust"]
    card.write_text(card.read_text().replace(sha256, "0" * 64))
    assert run_bench("analyze", read(store)["rslad"].run_id) == 0
    analysis = read(store)["rslad"].analysis
    assert analysis
    assert "is gone, another is here" in analysis.gaps["structure"]


def test_a_damaged_checkpoint_fails_its_run_alone(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = read(store)
    artifact_path(store, records["rslad"].run_id, "checkpoints/best.pt").write_bytes(b"")
    assert run_bench("analyze") == 1
    assert "failed: " in capsys.readouterr().err
    records = read(store)
    assert not records["rslad"].analysis
    assert records["natural"].analysis


def test_other_data_than_the_records_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_other(root: Path) -> Callable[..., object]:
        def load(spec: object) -> object:
            data = inputs(root)(spec)
            object.__setattr__(data, "sha256", "0" * 64)
            return data

        return load

    inputs = job.cached_loader
    monkeypatch.setattr(job, "cached_loader", load_other)
    assert run_bench("analyze") == 1
    assert "it states other data than those here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ffff",), "there is no record of a run 'ffff'"),
        (("tiny/digits/resnet8-w4/none",), "unknown row"),
        (("--suite", "cifar"), "no student of it is recorded"),
        (("--workers", "0"), "--workers 0: at least 1"),
        (("ffff", "--suite", "digits"), "runs and --suite: one of them"),
        (("--store", "nowhere"), "nothing is recorded in 'nowhere' yet"),
    ],
)
def test_bad_words_are_one_line(
    store: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench("analyze", *words) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("nowhere").exists()


def test_a_teacher_is_no_student(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = next(r for r in trained.read_records(store) if r.spec.role == "teacher")
    assert run_bench("analyze", teacher.run_id) == 2
    assert "is a teacher" in capsys.readouterr().err


def test_an_interrupted_analysis_continues(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job.TrackingStore, "save_record", interrupt)
        assert run_bench("analyze") == 130
    assert run_bench("analyze") == 0
    assert all(record.analysis for record in read(store).values())


def test_a_student_without_adversarial_examples_is_measured_and_not_compared(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> Tensor:
        raise GapError("the network's gradient is not finite")

    monkeypatch.setattr(examples, "attack_batch", refuse)
    assert run_bench("analyze", read(store)["rslad"].run_id) == 0
    analysis = read(store)["rslad"].analysis
    assert analysis
    assert "not finite" in analysis.gaps["structure/adv"]
    assert not analysis.against
    assert measure_name("structure", "cka", "features", "clean") in measures(read(store)["rslad"])
    assert "has no adversarial examples" in capsys.readouterr().err


def test_a_comparison_keeps_what_another_process_wrote_meanwhile(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expose_and_write(*values: Any) -> dict[str, Exposure]:
        other = read_record(path)
        context.store.save_record(copy_record(other, metrics=other.metrics | {name: 0.125}))
        return expose_all(*values)

    context, records, expose_all = open_context(copied), read(copied), group.expose_all
    name = measure_name("features", "cosine", "fgsm")
    path = context.store.records / records["rslad"].spec.record_name
    monkeypatch.setattr(group, "expose_all", expose_and_write)
    assert group.compare([*records.values()], context, force=True)
    assert read_record(path).metrics == records["rslad"].metrics | {name: 0.125}


def test_a_comparison_leaves_a_run_alone_that_another_process_analyses(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, before, saved = open_context(copied), read(copied), list[str]()
    monkeypatch.setattr(
        group, "save_analysis", lambda _, record, *rest: saved.append(record.spec.method)
    )
    with job.locked_run(before["rslad"], context.store):
        assert group.compare([*before.values()], context, force=True)
    assert saved == ["natural"]


def test_a_run_that_another_process_has_analysed_is_skipped(copied: Path) -> None:
    record = read(copied)["rslad"]
    text = job.analyze_run(
        record.model_copy(update={"analysis": None}), job.Comparison(), open_context(copied)
    )
    assert text == "another process has analysed it meanwhile"
    assert read(copied)["rslad"] == record


def test_a_run_that_was_trained_again_is_not_overwritten(copied: Path) -> None:
    record = read(copied)["rslad"].model_copy(update={"run_id": "0" * 32})
    with pytest.raises(BenchError, match="it was trained again meanwhile"):
        job.analyze_run(record, job.Comparison(), open_context(copied))


def test_each_student_meets_the_examples_of_its_own_teacher(copied: Path) -> None:
    records, context = read(copied), open_context(copied)
    assert records["rslad"].analysis
    old = records["rslad"].analysis.teacher_sha256
    card = next(card for card in cards.read_cards(copied) if card.sha256 == old)
    content = torch.load(cards.teacher_file(copied, card.identity), weights_only=True)
    checkpoint.save(Path("other.pt"), content | {"note": torch.zeros(1)})
    new = hashlib.sha256(Path("other.pt").read_bytes()).hexdigest()
    other = replace(card, identity=f"other-{new[:8]}", sha256=new)
    cards.add_teacher(copied, Path("other.pt"), other)
    kept = records["natural"].analysis
    assert kept
    job.save_analysis(
        context.store,
        records["natural"],
        measures(records["natural"]),
        kept.model_copy(update={"teacher_sha256": new}),
    )
    assert group.compare([*read(copied).values()], context)
    after = read(copied)
    for method, sha256 in (("rslad", old), ("natural", new)):
        analysis = after[method].analysis
        assert analysis
        assert {old[:16], new[:16]} < analysis.against.keys()
        name = measure_name("transferability", "resists_teacher")
        expected = analysis.against[sha256[:16]]
        assert after[method].metrics[name] == pytest.approx(expected, abs=1e-4)
        # No teacher is among the other students.
        resists = measure_name("transferability", "resists")
        assert after[method].metrics[resists] == records[method].metrics[resists]
    assert not group.compare([*after.values()], context)


@pytest.mark.parametrize("damage", ["cut", "few"])
def test_damaged_examples_are_made_again(copied: Path, damage: str) -> None:
    before = read(copied)
    path = job.examples_path(open_context(copied).store, before["rslad"])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        checkpoint.save(
            path, {job.EXAMPLES: torch.load(path, weights_only=True)[job.EXAMPLES][:10]}
        )
    assert run_bench("analyze", "--suite", "tiny.toml") == 0
    assert group.compare([*before.values()], open_context(copied), force=True)
    assert measures(read(copied)["natural"]) == pytest.approx(measures(before["natural"]), abs=1e-3)


def test_a_comparison_that_fails_is_one_line(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the network of others")

    monkeypatch.setattr(group, "compare", fail)
    capsys.readouterr()
    assert run_bench("analyze", "--quiet") == 1
    error = capsys.readouterr().err
    assert "not compared with each other: RuntimeError: the network of others" in error
    assert "Traceback" not in error


def test_more_processes_than_runs_are_no_fault(copied: Path) -> None:
    assert run_bench("analyze", "--workers", "1000000") == 0


@pytest.mark.slow
def test_processes_share_the_runs(store: Path) -> None:
    assert run_bench("analyze", "--workers", "2") == 0
    parallel = read(store)
    assert run_bench("analyze", "--force") == 0
    for method, record in read(store).items():
        assert measures(record) == pytest.approx(measures(parallel[method]), abs=1e-5)


class Threshold(Net):
    """Two classes by the mean pixel."""

    width, num_classes = 1, 2

    def __init__(self, border: float) -> None:
        super().__init__((0.0,), (1.0,))
        self.border = border

    def features(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2, 3))[:, None] - self.border

    def head(self, f: Tensor) -> Tensor:
        return torch.cat([-f, f], dim=1)


def test_exposure_has_known_values() -> None:
    x = torch.tensor([0.2, 0.4, 0.6, 0.8]).view(4, 1, 1, 1)
    y = torch.tensor([0, 0, 1, 1])
    shifted = x + torch.tensor([0.2, 0.2, -0.2, -0.2]).view(4, 1, 1, 1)
    exposure = expose(Threshold(0.5), x, y, {"same": x, "other": shifted})
    assert exposure.accuracy == {"same": 1.0, "other": 0.5}
    assert exposure.fooled == {"same": 0.0, "other": 0.5}


def test_an_image_that_was_wrong_is_not_fooled() -> None:
    x = torch.tensor([0.2, 0.4, 0.6, 0.8]).view(4, 1, 1, 1)
    y = torch.tensor([0, 1, 1, 1])
    adv = x.clone()
    adv[3] = 0.0
    exposure = expose(Threshold(0.5), x, y, {"other": adv})
    assert exposure.accuracy["other"] == 0.5
    assert exposure.fooled["other"] == pytest.approx(1 / 3)


def test_numbers_of_a_student_are_means_over_the_others() -> None:
    exposures = {
        "a": Exposure({"a": 0.1, "b": 0.5, "c": 0.7, "t": 0.4}, dict.fromkeys("abct", 0.0)),
        "b": Exposure({}, {"a": 0.2}),
        "c": Exposure({}, {"a": 0.4}),
        "t": Exposure({}, {"a": 0.9}),
    }
    findings = summarise("a", "t", exposures)
    name = "transferability"
    assert findings.numbers == pytest.approx(
        {
            measure_name(name, "resists"): 0.6,
            measure_name(name, "fools"): 0.3,
            measure_name(name, "resists_teacher"): 0.4,
            measure_name(name, "fools_teacher"): 0.9,
        }
    )


def test_a_student_alone_has_a_gap() -> None:
    exposures = {"a": Exposure({"a": 0.1}, {"a": 0.0})}
    findings = summarise("a", "", exposures)
    assert not findings.numbers
    assert "no other student" in findings.gaps["transferability"]


def test_groups_are_by_suite_data_model_and_seed(store: Path) -> None:
    keys = {grid.group_key(record) for record in read(store).values()}
    assert len(keys) == 1
    (key,) = keys
    assert key[1:] == ("digits", "resnet8-w4", 0)


def test_python_gets_a_frame_of_measures(analysed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    frame = bench.analyze(store=analysed)
    records = read(analysed)
    assert sorted(frame["method"]) == ["natural", "rslad"]
    row = frame[frame["method"] == "rslad"].iloc[0]
    name = measure_name("structure", "cka", "features", "adv")
    assert row["CKA, features, adversarial"] == records["rslad"].metrics[name]
    one = bench.analyze(records["natural"].run_id, store=analysed)
    assert one["method"].tolist() == ["natural"]
    with pytest.raises(BenchError, match="there is no record of a run 'ffff'"):
        bench.analyze(["ffff"], store=analysed)
