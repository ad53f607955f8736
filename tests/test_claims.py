"""Claims in the tracking store: one process holds, whatever dies, sleeps or comes late."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.tracking import claims
from bench.tracking.claims import Claims, HeldClaim, LostClaimError
from bench.tracking.store import TrackingStore

EXPERIMENT = "digits@1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingStore:
    return TrackingStore(tmp_path_factory.mktemp("store"))


@pytest.fixture
def elsewhere(store: TrackingStore, tmp_path: Path) -> Claims:
    """Return claims of a process that shares the tracking store alone."""
    experiment_id = store.get_or_create_experiment(EXPERIMENT)
    return Claims(store.client, experiment_id, tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(claims, "clock", lambda: now[0])
    monkeypatch.setattr(claims.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def held_by(held: HeldClaim | None) -> HeldClaim:
    assert held is not None
    return held


def let_pass(clock: list[float], watcher: Claims, seconds: float) -> None:
    """Let time pass for a process that looks every few seconds."""
    for _ in range(int(seconds / 5)):
        clock[0] += 5
        watcher.look()


def tags_of(store: TrackingStore) -> dict[str, str]:
    experiment = store.client.get_experiment(store.get_or_create_experiment(EXPERIMENT))
    tags: dict[str, str] = experiment.tags
    return {name: text for name, text in tags.items() if name.startswith(claims.PREFIX)}


def test_one_holds_and_the_other_leaves_no_trace(store: TrackingStore, elsewhere: Claims) -> None:
    here = store.claims(EXPERIMENT)
    with held_by(here.take("a")) as held:
        assert here.take("a") is None, "of this machine, by the lock"
        assert elsewhere.take("a") is None, "of another one, by its ticket"
        assert [*tags_of(store)] == [held.claim.tag]
        with held_by(elsewhere.take("b")):
            assert len(tags_of(store)) == 2
    assert not tags_of(store)


def test_a_silent_claim_is_dead_by_the_watchers_clock(
    store: TrackingStore, elsewhere: Claims, clock: list[float]
) -> None:
    held = held_by(store.claims(EXPERIMENT).take("a"))
    let_pass(clock, elsewhere, claims.DEAD_SECONDS - 5)
    assert elsewhere.take("a") is None
    held.beat()
    let_pass(clock, elsewhere, claims.DEAD_SECONDS - 5)
    assert elsewhere.take("a") is None, "it had a beat"
    let_pass(clock, elsewhere, 10)
    with held_by(elsewhere.take("a")):
        held.beat()
        with pytest.raises(LostClaimError, match="taken over by process"):
            held.check()
        assert store.claims(EXPERIMENT).take("b") is not None
    held.release()


def test_a_pause_of_the_watcher_is_no_silence(
    store: TrackingStore, elsewhere: Claims, clock: list[float]
) -> None:
    with held_by(store.claims(EXPERIMENT).take("a")):
        elsewhere.look()
        clock[0] += 10 * claims.DEAD_SECONDS
        assert elsewhere.take("a") is None


def test_an_outage_of_the_store_is_no_silence(
    store: TrackingStore, elsewhere: Claims, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise ConnectionError

    with held_by(store.claims(EXPERIMENT).take("a")):
        let_pass(clock, elsewhere, claims.DEAD_SECONDS - 5)
        with monkeypatch.context() as patch:
            patch.setattr(elsewhere.client, "get_experiment", fail)
            with pytest.raises(ConnectionError):
                elsewhere.look()
        let_pass(clock, elsewhere, 10)
        assert elsewhere.take("a") is None


def test_who_slept_learns_that_another_one_went_on(
    store: TrackingStore, elsewhere: Claims, clock: list[float]
) -> None:
    sleeper = held_by(store.claims(EXPERIMENT).take("a"))
    let_pass(clock, elsewhere, claims.DEAD_SECONDS + 5)
    other = held_by(elsewhere.take("a"))
    # Its beat was on the way while the other one looked.
    store.client.set_experiment_tag(elsewhere.experiment_id, sleeper.claim.tag, sleeper.claim.text)
    living, _ = elsewhere.look()
    assert [claim.claimant for claim in living if claim.name == "a"] == [other.claim.claimant]
    other.beat()
    other.check()
    other.release()
    sleeper.beat()
    with pytest.raises(LostClaimError, match="taken over by a process that is over"):
        sleeper.check()
    sleeper.release()
    assert not tags_of(store)


def test_a_claim_that_draws_for_ever_stops_nobody(
    store: TrackingStore, elsewhere: Claims, clock: list[float]
) -> None:
    stuck = claims.Claim("a", "stuck", folder_id="elsewhere")
    store.client.set_experiment_tag(elsewhere.experiment_id, stuck.tag, stuck.text)
    assert elsewhere.take("a") is None, "it may be about to draw"
    let_pass(clock, elsewhere, claims.DEAD_SECONDS + 5)
    held_by(elsewhere.take("a")).release()
    assert not tags_of(store)


def test_tags_that_are_no_claims_are_left_alone(store: TrackingStore, elsewhere: Claims) -> None:
    for name, text in {
        "a.b": "nonsense",
        "a.c": "[]",
        "a.d": '{"over": 1}',
        "x": "{}",
        "a.e": '{"ticket": "one"}',
    }.items():
        store.client.set_experiment_tag(elsewhere.experiment_id, claims.PREFIX + name, text)
    held_by(elsewhere.take("a")).release()
    assert len(tags_of(store)) == 5
    for tag in tags_of(store):
        store.client.delete_experiment_tag(elsewhere.experiment_id, tag)


def test_a_newcomer_with_an_earlier_clock_gives_way(
    store: TrackingStore, elsewhere: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = held_by(store.claims(EXPERIMENT).take("a"))
    monkeypatch.setattr(claims.time, "time", lambda: 0.0)
    assert elsewhere.take("a") is None
    held.beat()
    held.check()
    held.release()


def claim_all(root: str, shared: str, names: int, uri: str) -> list[str]:
    """Take each name once, as a machine of its own if `shared` is not the root; return what it had.

    What it holds is marked by a file, so two that hold one name are seen.
    """
    store = TrackingStore(Path(root))
    mine = store.claims(EXPERIMENT)
    taken = []
    todo = {f"name{number}" for number in range(names)}
    while todo:
        for name in sorted(todo):
            if Path(shared, name).exists():
                todo.discard(name)
            elif held := mine.take(name):
                with held:
                    if not Path(shared, name).exists():
                        with Path(shared, f"{name}.at").open("x"):
                            time.sleep(0.01)
                        Path(shared, f"{name}.at").unlink()
                        Path(shared, name).touch()
                        taken.append(name)
    return taken


@pytest.mark.slow
def test_processes_of_several_machines_share_names_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    TrackingStore(tmp_path).get_or_create_experiment(EXPERIMENT)
    roots = [str(tmp_path / "one"), str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path)]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = pool.starmap(claim_all, [(root, str(tmp_path), 24, uri) for root in roots])
    counts = Counter(name for names in results for name in names)
    assert len(counts) == 24
    assert set(counts.values()) == {1}
    assert not tags_of(TrackingStore(tmp_path))
    assert sum(bool(names) for names in results) > 1, "all of them had some"


def test_threads_that_claim_at_once(store: TrackingStore, tmp_path: Path) -> None:
    experiment_id = store.get_or_create_experiment(EXPERIMENT)
    winners: list[HeldClaim] = []
    start = threading.Barrier(6)

    def compete(number: int) -> None:
        mine = Claims(store.client, experiment_id, tmp_path / str(number))
        start.wait()
        if held := mine.take("a"):
            winners.append(held)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) <= 1
    for held in winners:
        held.release()
    assert not tags_of(store)


@pytest.fixture(autouse=True)
def nothing_left(store: TrackingStore) -> Iterator[None]:
    yield
    for tag in tags_of(store):
        store.client.delete_experiment_tag(store.get_or_create_experiment(EXPERIMENT), tag)


def test_a_claim_says_what_it_is_at(store: TrackingStore) -> None:
    with held_by(store.claims(EXPERIMENT).take("a")) as held:
        held.doing = "epoch 3 of 40"
        held.beat()
        (claim,) = claims.read_claims(tags_of(store))
        assert claim == replace(held.claim, doing="epoch 3 of 40")
        assert claim.beats == 1
