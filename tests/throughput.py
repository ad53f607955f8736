"""How fast a CUDA device trains: the harness against the authors' way of writing the step, one table.

    python tests/throughput.py [--out DIR] [--students A,B] [--teachers A,B] [--batches 128,512] [--ways "A;B"] [--minutes 9]

Needs the packages alone: the images are random. Writes throughput.json and throughput.md. A step is RSLAD's with PGD-10
(tests/reference.py). "as written" is the harness in bf16, channels last, folded, and no more; "captured" replays a CUDA
graph; "compiled" compiles the networks; "TF32" is compiled and captured in the reference's precision. Rows that would
begin after the given minutes are left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import reference
from reference import BUDGET

from bench import acceleration, data, datasets, models
from bench.spec import Spec
from bench.speed import operations
from bench.suites import Training
from bench.train import Objective, Trainer
from methods.base import Net
from methods.rslad import Rslad

IMAGES = 50_000
INFO = datasets.get("cifar10")
WAYS = ("reference", "as written", "captured", "compiled", "compiled, captured", "TF32, compiled, captured")


def harness(student: Net, teacher: Net, batch: int, precision: str) -> Trainer:
    """A trainer on random images."""
    training = Training(epochs=1, batch=batch, averaging=("ema",))
    spec = Spec(suite="throughput", role="student", dataset="cifar10", arch="any", method="rslad", hyper={}, teachers={},
                seed=0, training=training, eps=BUDGET.eps, inner_step=BUDGET.step, inner_steps=BUDGET.steps, attacks=(),
                full_checkpoints=(), precision=precision)  # type: ignore[arg-type]  # fmt: skip
    x = torch.randint(256, (IMAGES, *INFO.shape), dtype=torch.uint8, device="cuda")
    split = data.Split(x, torch.randint(INFO.num_classes, (IMAGES,), device="cuda"))
    objective = Objective(Rslad(), student, {"robust": teacher}, IMAGES).cuda()
    return Trainer(objective, data.Data(INFO, split, split, split, ""), spec, Path(tempfile.gettempdir()))


def steps(way: str, student: Net, teacher: Net, batch: int) -> tuple[Callable[[torch.Tensor], Any], Trainer]:
    """A function that makes one step on the images at these positions."""
    student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    run = harness(student, teacher, batch, "fp32" if way in ("reference", WAYS[-1]) else "bf16")
    if way == "reference":
        plain, taught_by = copy.deepcopy(student).to(memory_format=torch.contiguous_format), copy.deepcopy(teacher)
        optimiser = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

        def plainly(index: torch.Tensor) -> object:
            batch = run.batch(index, 0)
            return reference.rslad(plain, taught_by, optimiser, batch.x, batch.y)

        return plainly, run
    run.objective.train()
    run.set_rate(0)
    if "compiled" in way:
        index = torch.arange(batch, device="cuda")
        path = acceleration.compile_networks(run.objective.nets, lambda: rehearsal(run, index))
        assert path == acceleration.COMPILED, path
    return (run.advance(0) if "captured" in way else lambda index: run.step(run.batch(index, 0))), run


def rehearsal(run: Trainer, index: torch.Tensor) -> torch.Tensor:
    batch = run.batch(index, 0)
    return run.terms(batch, run.attack(batch))[1]


def timed(step: Callable[[torch.Tensor], Any], run: Trainer, seconds: float = 1.0) -> list[float]:
    """Milliseconds of single steps, after a few to warm up."""
    order, found = run.order(), []
    with acceleration.tuned_convolutions():
        for index in order[:4]:
            step(index)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        while len(found) < 5 or (time.perf_counter() - begun < seconds and len(found) < 40):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            step(order[len(found) % len(order)])
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end))
    return found


def peak(size: int = 8192) -> float:
    """The rate of a bf16 matrix product, FLOP/s."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(20):
        a @ b
    end.record()
    end.synchronize()
    return 20 * 2 * size**3 / (start.elapsed_time(end) / 1000)


def row(way: str, names: tuple[str, str], nets: tuple[Net, Net], batch: int, top: float) -> dict[str, Any]:
    """What one way of making the step takes."""
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    step, run = steps(way, *nets, batch)
    times = timed(step, run)
    flops, middle = batch * operations(*nets, INFO.shape, BUDGET.steps), statistics.median(times)
    return {
        "student": names[0], "teacher": names[1], "batch": batch, "way": way, "ms": middle,
        "low": min(times), "high": max(times), "images_per_second": 1000 * batch / middle,
        "share_of_peak": flops / (middle / 1000) / top, "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "seconds_to_begin": time.perf_counter() - begun - sum(times) / 1000, "epoch_seconds": IMAGES / batch * middle / 1000,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], about: str) -> str:
    """Markdown, the ratio to the reference of the same student, teacher and batch first."""
    head = (
        "student",
        "teacher",
        "batch",
        "way",
        "ms a step (low to high)",
        "ratio",
        "images/s",
        "share of peak",
        "GiB",
    )
    lines = [about, "", f"| {' | '.join(head)} |", "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"]
    slow = {(r["student"], r["teacher"], r["batch"]): r["ms"] for r in rows if r["way"] == "reference"}
    for r in rows:
        ratio = slow.get((r["student"], r["teacher"], r["batch"]), float("nan")) / r["ms"]
        lines.append(
            f"| {r['student']} | {r['teacher']} | {r['batch']} | {r['way']} | {r['ms']:.1f} ({r['low']:.1f} to "
            f"{r['high']:.1f}) | {ratio:.2f} | {r['images_per_second']:,.0f} | {100 * r['share_of_peak']:.0f} % | "
            f"{r['peak_gib']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("throughput"))
    parser.add_argument("--students", default="resnet18,mobilenetv2")
    parser.add_argument("--teachers", default="resnet18,wrn34-10")
    parser.add_argument("--batches", default="128,512,1024")
    parser.add_argument("--ways", default=";".join(WAYS))
    parser.add_argument("--minutes", type=float, default=9)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here")
    begun, top = time.perf_counter(), peak()
    about = (
        f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}; a bf16 matrix product "
        f"reaches {top / 1e12:.0f} TFLOP/s. Medians of at least 5 steps."
    )
    rows: list[dict[str, Any]] = []
    given.out.mkdir(parents=True, exist_ok=True)
    print(about, flush=True)
    for names in [(s, t) for t in given.teachers.split(",") for s in given.students.split(",")]:
        torch.manual_seed(0)
        nets = models.build(names[0], INFO).cuda(), models.build(names[1], INFO).cuda()
        for batch in map(int, given.batches.split(",")):
            for way in given.ways.split(";"):
                if time.perf_counter() - begun > 60 * given.minutes:
                    continue
                rows.append(row(way, names, nets, batch, top))
                print(json.dumps(rows[-1]), flush=True)
                (given.out / "throughput.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
                (given.out / "throughput.md").write_text(table(rows, about))
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
