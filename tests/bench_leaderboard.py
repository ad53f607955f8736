"""Time and memory of a leaderboard: seconds and peak resident size for 100 to 10,000 runs.

    pytest -s tests/bench_leaderboard.py [--benchmark-json FILE]

Not collected with the tests. The measured process collects and renders everything: tables, and a
site with a page for each run. A task is 50 settings of 10 seeds, each run with 50 parameters, 36
epochs of 5 curves and the verdicts on 1,000 images. The runs are written into MLflow's tables at
once, which takes seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels import models

from bench.protocol.suites import DIGITS
from leaderboards.schema.spec import Spec

pytestmark = pytest.mark.timeout(3600)
SEEDS, EPOCHS, IMAGES = 10, 36, 1000
SUITE = "digits@3"
CURVES = ("train/kl_adv", "train/kl_nat", "val/clean", "val/pgd", "epoch")
ATTACKS = ("clean", "fgsm", "pgd20", "pgd20_trades", "cw_inf", "worst")
COSTS = (
    "train_seconds",
    "student_passes",
    "eval_seconds",
    "eval_forwards",
    "eval_backwards",
    "aa_seconds",
)
MEASURE = """
import json, resource, sys, time
from pathlib import Path
import leaderboards
wall = time.perf_counter()
leaderboards.write(sys.argv[1], Path(sys.argv[2]))
wall, cpu = time.perf_counter() - wall, time.process_time()
print(json.dumps([wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def make_store(folder: Path, tasks: int, settings: int) -> str:
    """Make a store of tasks x settings x 10 seeds without checkpoints; return its tracking URI."""
    uri, rng = f"sqlite:///{folder / 'mlflow.db'}", np.random.default_rng(0)
    artifacts = folder / "artifacts"
    experiment = int(
        MlflowClient(uri).create_experiment(SUITE, artifact_location=artifacts.as_uri())
    )
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        for task in range(tasks):
            inserts: dict[type, list[dict[str, Any]]] = {}
            for setting in range(settings):
                right = rng.random(IMAGES) < rng.uniform(0.3, 0.7)
                parent = _run(inserts, experiment, artifacts, 0, {"role": "group"})
                for seed in range(SEEDS):
                    survived = right ^ (rng.random(IMAGES) < 0.1)
                    _finished_run(
                        inserts, experiment, artifacts, parent, _spec(task, setting, seed), survived
                    )
            for model, rows in inserts.items():
                connection.execute(sqlalchemy.insert(model), rows)
    engine.dispose()
    return uri


def _spec(task: int, setting: int, seed: int) -> Spec:
    hyper = {"alpha": setting / 100, "tau": 1.0, "beta": 6.0, "gamma": 2.0, "base": "rslad"}
    return Spec(
        suite=SUITE, role="student", dataset=f"data{task % 4}", arch=f"net{task // 4}",
        method=f"m{setting % 25}", hyper=hyper, teachers={"robust": "teacher-trades-01234567"},
        seed=seed, training=DIGITS.training, eps=DIGITS.eps, inner_step=DIGITS.inner_step,
        inner_steps=DIGITS.inner_steps, attacks=DIGITS.attacks,
        full_checkpoints=DIGITS.full_checkpoints, precision="fp32",
    )  # fmt: skip


def _run(
    inserts: dict[type, list[dict[str, Any]]],
    experiment: int,
    artifacts: Path,
    start: int,
    tags: dict[str, str],
) -> str:
    run = uuid.uuid4().hex
    inserts.setdefault(models.SqlRun, []).append(
        {
            "run_uuid": run, "name": tags.get("method", ""), "status": "FINISHED",
            "start_time": start, "end_time": start, "lifecycle_stage": "active",
            "artifact_uri": (artifacts / run / "artifacts").as_uri(), "experiment_id": experiment,
            "source_type": "LOCAL", "source_name": "", "entry_point_name": "", "user_id": "",
            "source_version": "",
        }
    )  # fmt: skip
    inserts.setdefault(models.SqlTag, []).extend(
        {"run_uuid": run, "key": k, "value": v} for k, v in tags.items()
    )
    return run


def _finished_run(
    inserts: dict[type, list[dict[str, Any]]],
    experiment: int,
    artifacts: Path,
    parent: str,
    spec: Spec,
    survived: Any,
) -> None:
    """Add a finished run with parameters, curves, results and files, as `bench run` leaves it."""
    start = 1_700_000_000_000 + 1000 * len(inserts[models.SqlRun])
    alpha, command = spec.hyper["alpha"], f"python -m bench run --method {spec.method}"
    tags = {
        "mlflow.parentRunId": parent, "mlflow.runName": f"{spec.method} seed {spec.seed}",
        "role": spec.role, "spec_id": spec.id, "suite": spec.suite, "dataset": spec.dataset,
        "method": spec.method, "student": spec.arch, "teacher": spec.teacher,
        "variant": f"alpha={alpha}", "sets": "", "seed": str(spec.seed),
        "command": f"{command} --alpha {alpha} --seeds {spec.seed}",
        "code_commit": "0" * 40, "code_dirty": "false", "flags": "{}", "status_note": "",
        **{f"sha256.{name}": uuid.uuid4().hex * 2 for name in ("best", "last", "ema", "swa")},
    }  # fmt: skip
    run = _run(inserts, experiment, artifacts, start, tags)
    inserts.setdefault(models.SqlParam, []).extend(
        {"run_uuid": run, "key": key, "value": str(value)} for key, value in spec.flat().items()
    )
    aa = float(survived.mean())
    scores = {f"{of}/{name}": aa + 0.01 * n for of in ("test", "test_last", "test_ema", "test_swa")
              for n, name in enumerate(ATTACKS)}  # fmt: skip
    scores |= {"test/aa": aa, "test/n": IMAGES, "test/aa_n": IMAGES} | dict.fromkeys(
        (f"cost/{c}" for c in COSTS), 60.0
    )
    points = [(name, epoch, 1 / (1 + epoch)) for name in CURVES for epoch in range(EPOCHS)]
    last = [point for point in points if point[1] == EPOCHS - 1]
    results = [(name, 0, value) for name, value in scores.items()]
    shared = {"run_uuid": run, "timestamp": start, "is_nan": False}
    for model, rows in (
        (models.SqlMetric, points + results),
        (models.SqlLatestMetric, last + results),
    ):
        inserts.setdefault(model, []).extend(
            shared | {"key": key, "step": epoch, "value": value} for key, epoch, value in rows
        )
    files = artifacts / run / "artifacts"
    (files / "verdicts").mkdir(parents=True)
    (files / "spec.json").write_text(spec.json())
    (files / "environment.json").write_text(
        json.dumps({"device": "cpu", "torch": "2.14.0", "data": {"sha256": "0"}})
    )
    np.savez_compressed(
        files / "verdicts" / "verdicts_best_aa.npz", key="", clean=survived, robust_aa=survived
    )


@pytest.mark.parametrize(
    ("tasks", "settings", "seconds"),
    [(1, 10, 3), (2, 50, 30), (6, 50, 30), (20, 50, 30)],
    ids=lambda value: f"{value}",
)
def test_many_runs(tasks: int, settings: int, seconds: int, benchmark: Any, tmp_path: Path) -> None:
    """CPU seconds of the process, with all its imports, so that a busy machine tells the same."""
    uri = benchmark.pedantic(make_store, (tmp_path, tasks, settings), rounds=1)
    command = [sys.executable, "-c", MEASURE, uri, str(tmp_path / "site")]
    wall, cpu, size = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    count = len([*(tmp_path / "site" / "runs").iterdir()])
    benchmark.extra_info |= {"runs": count, "wall": wall, "cpu": cpu, "MiB": size}
    print(f"\n{count:,} runs: {wall:.1f} s ({cpu:.1f} s of CPU, {size:.0f} MiB)")
    assert count == tasks * settings * SEEDS
    assert cpu < seconds
    assert size < 1024
