"""The page on transfer to other classes: both kinds of methods, from records of the halves."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping

import numpy as np
import pytest
from record_store import TAGS
from scipy.stats import ttest_ind

from bench.execution.plan import plan_runs
from bench.protocol.options import RunOptions
from bench.reference import transfer_page
from leaderboards.schema.analysis import TASK_MODES, TASK_VIEWS, task_name
from leaderboards.schema.fields import Tag
from leaderboards.schema.metrics import CLEAN, NUM_IMAGES
from leaderboards.schema.record import Record, build_record

# Robust accuracy of the probe: four methods that train on adversarial examples, four that do not.
PROBES = {"pgd_at": 0.8, "trades": 0.7, "rslad": 0.75, "ard": 0.72}
PROBES |= {"natural": 0.1, "kd": 0.2, "fitnet": 0.15, "crd": 0.13}


def make_records(
    probes: Mapping[str, float], suite: str = "digits-halves", variant: str = ""
) -> list[Record]:
    """Return records of three seeds; all columns but the probe's under PGD are one half."""
    names = ",".join(probes)
    records = []
    for run in plan_runs(RunOptions(suite=suite, method=names, seeds="0,1,2"), {}):
        if run.spec.role == "teacher":
            continue
        values = {
            task_name("digits-5-9", mode, view): 0.5 for mode in TASK_MODES for view in TASK_VIEWS
        }
        luck = (run.spec.seed - 1) / 100
        values[task_name("digits-5-9", "probe", "pgd20")] = probes[run.spec.method] + luck
        record = build_record(
            spec_id=run.spec.id,
            run_id=uuid.uuid5(uuid.NAMESPACE_URL, run.spec.id).hex,
            start_time=1,
            spec=json.loads(run.spec.json()),
            tags=TAGS | {Tag.VARIANT: variant},
            metrics={NUM_IMAGES: 4, CLEAN: 1.0} | values,
            labels=np.arange(4),
            predictions=np.arange(4),
            checksums={},
            environment={},
            curves={},
        )
        records.append(record)
    return records


def section(page: str, suite: str) -> str:
    return page.partition(f"## {suite}@1")[2].partition("\n## ")[0]


def test_without_records_the_page_says_so() -> None:
    page = transfer_page.render([])
    assert page.count("No analysed records yet.") == 2


def test_both_kinds_are_compared_over_methods() -> None:
    text = section(transfer_page.render(make_records(PROBES)), "digits-halves")
    assert "8 methods, 3 seeds; 4 train on adversarial examples, 4 do not." in text
    line = next(line for line in text.splitlines() if line.startswith("| linear probe, PGD-20 |"))
    assert "| 74.2 | 14.5 |" in line
    adversarial, others = [*PROBES.values()][:4], [*PROBES.values()][4:]
    result = ttest_ind(adversarial, others, equal_var=False)
    interval = result.confidence_interval(1 - 0.05 / 10)
    numbers = [*map(float, re.findall(r"[+-]\d+\.\d", line))]
    expected = [100 * (np.mean(adversarial) - np.mean(others)), *(100 * x for x in interval)]
    assert numbers == pytest.approx(expected, abs=0.06)
    better = next(line for line in text.splitlines() if "**better**" in line)
    assert better.endswith("**better**: linear probe, PGD-20.")
    assert "**worse**" not in text
    assert "head, plain, clean" in next(x for x in text.splitlines() if "**Undecided**" in x)


def test_methods_that_transfer_worse_are_said() -> None:
    reverse = dict(zip(PROBES, reversed([*PROBES.values()]), strict=True))
    text = section(transfer_page.render(make_records(reverse)), "digits-halves")
    assert "They transfer **worse**: linear probe, PGD-20." in text


def test_rows_are_means_over_seeds_best_first() -> None:
    text = section(transfer_page.render(make_records(PROBES)), "digits-halves")
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \| 50.0 ± 0.0 \| (\S+ ± \S+) \|", text, re.M)
    assert rows[0] == ("pgd_at", "yes", "80.0 ± 1.0")
    assert rows[-1] == ("natural", "no", "10.0 ± 1.0")
    assert len(rows) == 8


def test_few_methods_have_no_interval() -> None:
    few = {name: PROBES[name] for name in ("pgd_at", "natural")}
    text = section(transfer_page.render(make_records(few)), "digits-halves")
    assert "| linear probe, PGD-20 | 80.0 | 10.0 | +70.0 |" in text
    assert "**better**" not in text


def test_one_kind_of_methods_alone_has_no_difference() -> None:
    text = section(transfer_page.render(make_records({"pgd_at": 0.8})), "digits-halves")
    assert "| linear probe, PGD-20 | 80.0 | - | - |" in text
    assert "nan" not in text


def test_other_settings_than_the_defaults_stay_out() -> None:
    assert "No analysed records yet." in section(
        transfer_page.render(make_records(PROBES, variant="lr=0.5")), "digits-halves"
    )
