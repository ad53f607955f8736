"""Time and memory of a leaderboard: seconds and peak resident size for 100 to 10,000 runs.

    pytest -s tests/bench_leaderboard.py [--benchmark-json FILE]

Not collected with the tests. The measured process collects and renders everything: tables, and a
site with a page for each run. A task is 50 settings of 10 seeds, each run with 50 parameters, 36
epochs of 5 curves, and labels, predictions and verdicts of 1,000 images.
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

from bench.protocol.suites import DIGITS
from leaderboards.schema.checkpoints import CHECKPOINTS
from leaderboards.schema.metrics import accuracy_name
from leaderboards.schema.packing import Classes, Verdicts
from leaderboards.schema.record import Record, build_record
from leaderboards.schema.spec import Spec

pytestmark = pytest.mark.timeout(3600)
SEEDS, EPOCHS, IMAGES = 10, 36, 1000
SUITE = "digits@3"
CURVES = ("train/kl_adv", "train/kl_nat", "val/clean", "val/robust", "lr")
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
leaderboards.write(*map(Path, sys.argv[1:]))
wall, cpu = time.perf_counter() - wall, time.process_time()
print(json.dumps([wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def write_records(folder: Path, tasks: int, settings: int) -> Path:
    """Write the records of tasks x settings x 10 seeds; return their folder."""
    rng = np.random.default_rng(0)
    labels = (np.arange(IMAGES) % 10).astype(np.uint16)
    folder.mkdir()
    for task in range(tasks):
        for setting in range(settings):
            right = rng.random(IMAGES) < rng.uniform(0.3, 0.7)
            for seed in range(SEEDS):
                survived = right ^ (rng.random(IMAGES) < 0.1)
                record = _record(_spec(task, setting, seed), labels, survived)
                (folder / record.spec.record_name).write_text(record.to_json())
    return folder


def _spec(task: int, setting: int, seed: int) -> Spec:
    hyper = {"alpha": setting / 100, "tau": 1.0, "beta": 6.0, "gamma": 2.0, "base": "rslad"}
    return Spec(
        suite=SUITE, role="student", dataset=f"data{task % 4}", arch=f"net{task // 4}",
        method=f"m{setting % 25}", hyper=hyper, teachers={"robust": "teacher-trades-01234567"},
        seed=seed, training=DIGITS.training, eps=DIGITS.eps, inner_step=DIGITS.inner_step,
        inner_steps=DIGITS.inner_steps, attacks=DIGITS.attacks,
        full_checkpoints=DIGITS.full_checkpoints, precision="fp32",
    )  # fmt: skip


def _record(spec: Spec, labels: Classes, survived: Verdicts) -> Record:
    """Return the record of a run as `bench run` leaves it, clean like attacked."""
    alpha, command = spec.hyper["alpha"], f"python -m bench run --method {spec.method}"
    aa = float(survived.mean())
    scores = {accuracy_name(attack, checkpoint): min(aa + 0.01 * number, 1)
              for checkpoint in CHECKPOINTS for number, attack in enumerate(ATTACKS)}  # fmt: skip
    scores |= {"test/aa": aa, "test/n": IMAGES, "test/aa_n": IMAGES}
    scores |= dict.fromkeys((f"cost/{name}" for name in COSTS), 60.0)
    return build_record(
        spec_id=spec.id,
        run_id=uuid.uuid4().hex,
        start_time=1_700_000_000_000 + 1000 * spec.seed,
        spec=json.loads(spec.json()),
        tags={
            "variant": f"alpha={alpha}", "sets": "", "flags": "{}", "status_note": "",
            "command": f"{command} --alpha {alpha} --seeds {spec.seed}",
            "code_commit": "0" * 40, "code_dirty": "false",
        },
        checksums={name: uuid.uuid4().hex * 2 for name in CHECKPOINTS},
        metrics=scores,
        curves={name: [(epoch, 1 / (1 + epoch)) for epoch in range(EPOCHS)] for name in CURVES},
        environment={"device": "cpu", "torch": "2.14.0", "data": {"sha256": "0"}},
        labels=labels,
        predictions=np.where(survived, labels, (labels + 1) % 10).astype(np.uint16),
        survived=survived,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tasks", "settings", "seconds"),
    [(1, 10, 3), (2, 50, 30), (6, 50, 30), (20, 50, 30)],
    ids=lambda value: f"{value}",
)
def test_many_runs(tasks: int, settings: int, seconds: int, benchmark: Any, tmp_path: Path) -> None:
    """CPU seconds of the process, with all its imports, so that a busy machine tells the same."""
    arguments = (tmp_path / "records", tasks, settings)
    folder = benchmark.pedantic(write_records, arguments, rounds=1)
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "site")]
    wall, cpu, size = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    count = len([*(tmp_path / "site" / "runs").iterdir()])
    benchmark.extra_info |= {"runs": count, "wall": wall, "cpu": cpu, "MiB": size}
    print(f"\n{count:,} runs: {wall:.1f} s ({cpu:.1f} s of CPU, {size:.0f} MiB)")
    assert count == tasks * settings * SEEDS
    assert cpu < seconds
    assert size < 1024
