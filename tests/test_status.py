"""Where runs are, as `status` tells it from the tracking store alone."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cli.commands import status as command
from bench.cli.main import main
from bench.execution.grid.status import STATES, RunStatus, format_status, read_status
from bench.execution.plan import plan_runs
from bench.protocol.options import RunOptions
from bench.tracking import claims
from bench.tracking.claims import Claim, Claims
from bench.tracking.store import LOCKS, TrackingStore
from leaderboards.schema.fields import FAILED, FINISHED, KILLED, REPLACED_TAG, Tag
from leaderboards.schema.spec import Spec

SPEC = plan_runs(RunOptions(method="natural", student="resnet8-w4"), {})[0].spec


def spec_of(seed: int) -> Spec:
    return dataclasses.replace(SPEC, seed=seed)


def start(store: TrackingStore, seed: int, **tags: str) -> str:
    spec = spec_of(seed)
    tags = spec.identity_tags | {"suite": spec.suite, Tag.VARIANT: ""} | tags
    return store.start_run(spec, tags).run_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingStore]:
    """A store with a run in each state."""
    store = TrackingStore(tmp_path_factory.mktemp("store"))
    client, elsewhere = store.client, tmp_path_factory.mktemp("elsewhere")
    client.set_terminated(start(store, 0, code_commit="a" * 40), FINISHED)
    first = start(store, 1, code_commit="b" * 40)
    client.set_terminated(first, FINISHED)
    second = start(store, 1, code_commit="a" * 40)
    client.set_terminated(second, FINISHED)
    store.mark_replaced(spec_of(1), second)
    assert client.get_run(first).data.tags[REPLACED_TAG] == second
    failed = start(store, 2)
    client.set_tag(failed, Tag.STATUS_NOTE, "failed: the loss is not finite")
    client.set_terminated(failed, FAILED)
    client.set_terminated(start(store, 3), KILLED)
    for seed in (4, 5, 6):
        client.log_metric(start(store, seed), "epoch", 2, step=2)
    there = Claims(client, store.get_or_create_experiment(SPEC.suite), elsewhere)
    held = there.take(spec_of(4).id)
    assert held
    held.doing = "epoch 4 of 40, 2 min left"
    held.beat()
    silent = Claim(spec_of(5).id, "silent", 1, host="gone", pid=7, heard=time.time() - 600)
    client.set_experiment_tag(there.experiment_id, silent.tag, silent.text)
    yield store
    held.release()


def test_each_state_is_told_apart(store: TrackingStore) -> None:
    states = {int(status.seed): status for status in read_status(store.root)}
    assert {seed: status.state for seed, status in states.items()} == {
        0: "done", 1: "done", 2: "failed", 3: "interrupted", 4: "running", 5: "dead",
        6: "interrupted"}  # fmt: skip
    assert states[2].what == "failed: the loss is not finite"
    assert states[3].what == "before its first epoch ended; the same command goes on"
    assert states[4].what == "epoch 4 of 40, 2 min left"
    assert states[4].where.endswith(f" {claims.os.getpid()}")
    assert states[5].what == "no beat for 10 min; the same command takes it up"
    assert states[5].where == "gone 7"
    assert states[6].what == "after epoch 3; the same command goes on"
    assert states[1].code == "a" * 40, "the run that counts"


def test_a_process_that_died_here_is_dead_at_once(store: TrackingStore) -> None:
    """Its lock is free, however young its last beat is."""
    mine = store.claims(SPEC.suite)
    mine.folder.mkdir(exist_ok=True)
    claim = Claim(spec_of(6).id, "died", 1, heard=time.time(), host="here", pid=8,
                  folder_id=claims.folder_id(store.root / LOCKS))  # fmt: skip
    store.client.set_experiment_tag(mine.experiment_id, claim.tag, claim.text)
    try:
        (status,) = [s for s in read_status(store.root) if s.seed == "6"]
        assert (status.state, status.where) == ("dead", "here 8")
    finally:
        store.client.delete_experiment_tag(mine.experiment_id, claim.tag)


def test_the_table_has_what_is_not_done(store: TrackingStore) -> None:
    states = read_status(store.root)
    head, _, *lines = format_status(states).splitlines()
    assert head == "1 running, 1 dead, 2 interrupted, 1 failed, 2 done"
    assert [line.split()[0] for line in lines] == [
        "running", "dead", "interrupted", "interrupted", "failed"]  # fmt: skip
    assert len(format_status(states, all_done=True).splitlines()) == len(lines) + 4


def test_versions_of_the_code_are_named(store: TrackingStore) -> None:
    states = [*read_status(store.root)]
    other = dataclasses.replace(states[-1], code="c" * 40)
    text = format_status([*states, other])
    assert text.endswith("made with several versions of the code: aaaaaaaaaa (2), cccccccccc (1)")


def test_json_is_the_same(store: TrackingStore, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["status", "--store", str(store.root), "--json"])
    assert end.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert [RunStatus(**entry) for entry in document] == read_status(store.root)
    assert [entry["state"] for entry in document] == sorted(
        (entry["state"] for entry in document), key=STATES.index
    )


def test_a_grid_names_what_has_not_begun_and_what_it_waits_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "rslad,natural", "--suite", "digits", "--student", "resnet8-w4"]
    with pytest.raises(SystemExit) as end:
        main(["status", "--store", str(tmp_path / "none"), "--", *words])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 waiting, 2 to do"
    assert "for resnet8-w16-trades-" in lines[2]
    assert not (tmp_path / "none").exists(), "looking makes nothing"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "--watch"], "--json and --watch: one of them"),
        (["--store", "a", "--", "--method", "rslad", "--store", "b"], "before `--` or after it"),
        (["--", "--method", "nonsense"], "unknown method"),
    ],
)
def test_contradictions_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["status", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_watching_ends_when_all_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = RunStatus("running", "id", "digits@3", "digits", "resnet8-w4", "rslad", "", "0")
    looks = iter([[running], [running], [dataclasses.replace(running, state="done")]])
    monkeypatch.setattr(command, "look", lambda _: next(looks))
    monkeypatch.setattr(command, "WATCH_SECONDS", 0.0)
    command.show_status(command.StatusRequest(command.StatusOptions(watch=True)))
    assert "1 done" in capsys.readouterr().out
    assert next(looks, None) is None
