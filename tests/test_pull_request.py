"""A result of somebody else: from a run in another folder to a row of a pull request's pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import connect, serve_hub

from bench import cli
from leaderboards.read.records import read_record
from leaderboards.schema.record import Record

pytest.importorskip("huggingface_hub")

ROOT = Path(__file__).parents[1]
RUN = (
    "run --method natural --suite digits --student resnet8-w4 --seeds 77 --epochs 1 "
    "--limit-train 128 --limit-test 40 --quiet"
)
REPOSITORY = "alice/natural"


def run_bench(words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert stop.value.code == 0


def git(clone: Path, *words: str) -> None:
    name = ("-c", "user.name=alice", "-c", "user.email=alice@example.org")
    subprocess.run(["git", *name, *words], cwd=clone, check=True, capture_output=True)


def make_clone(folder: Path) -> Path:
    """Make a repository with the records of one suite on its branch `main`; return its records."""
    results = folder / "leaderboards" / "results"
    results.mkdir(parents=True)
    for path in (ROOT / "leaderboards" / "results").glob("digits@3-digits-resnet8-w4-kd-*.json"):
        (results / path.name).write_bytes(path.read_bytes())
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "Records")
    git(folder, "switch", "-q", "-c", "mine")
    return results


def check_records(clone: Path, hub: str) -> subprocess.CompletedProcess[str]:
    """Commit what is new, and check it as CI does."""
    git(clone, "add", "leaderboards")
    git(clone, "commit", "-q", "-m", "A record")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(clone.parent / "cache")}
    command = [sys.executable, str(ROOT / ".ci" / "records"), "main"]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)


def change_accuracy(path: Path, record: Record) -> None:
    """Claim that two more images survive PGD."""
    content = json.loads(path.read_text())
    content["metrics"]["test/pgd20"] = record.metrics["test/pgd20"] + 2 / 40
    path.write_text(json.dumps(content))


@pytest.mark.slow
def test_from_a_run_elsewhere_to_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "clone"
    results = make_clone(clone)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with serve_hub(tmp_path / "hub") as server:
        connect(server.url, tmp_path, monkeypatch)
        run_bench(RUN)
        (file,) = Path("runs", "records").iterdir()
        record = read_record(file)
        run_bench(f"export {record.run_id} --out {results}")
        # Nobody can verify it yet.
        checked = check_records(clone, server.url)
        assert checked.returncode == 1
        assert "not verified: no checkpoint" in checked.stderr
        run_bench(f"export {record.run_id} --hub {REPOSITORY}")
        run_bench(f"export {record.run_id} --out {results}")
        checked = check_records(clone, server.url)
        assert checked.returncode == 0, checked.stderr
        assert "reproduced" in checked.stdout
        assert "taken in as run" in checked.stdout
        page = (clone / "leaderboard-pages" / "leaderboard.md").read_text()
        assert "| natural (limit_test=40," in page
        change_accuracy(results / file.name, record)
        checked = check_records(clone, server.url)
    assert checked.returncode == 1
    assert "not reproduced: test/pgd20 is" in checked.stderr


def test_a_checkpoint_beside_its_record_is_the_one_that_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (checkpoint,) = (ROOT / "leaderboards" / "results").glob("digits@3-digits-*-trades-seed0-*.pt")
    file = checkpoint.with_suffix(".json")
    Path(file.name).write_bytes(file.read_bytes())
    (other,) = (ROOT / "leaderboards" / "results").glob("digits@3-digits-*-natural-seed0-*.pt")
    Path(checkpoint.name).write_bytes(other.read_bytes())
    with pytest.raises(SystemExit) as stop:
        cli.main(["import", file.name, "--verify"])
    assert stop.value.code == 1
    assert f"{checkpoint.name!r} has sha256 " in capsys.readouterr().err
