"""How fast a CUDA device trains: the harness against the authors' way of writing the step, one table.

    python tests/throughput.py [--out DIR] [--students A,B] [--teachers A,B] [--batches 128,512] [--ways "A;B"] [--minutes 9]

Needs the packages alone: the images are random. Writes throughput.json and throughput.md. A step is RSLAD's with PGD-10
(tests/reference.py). "as written" is the harness in bf16, channels last, folded, and no more; "captured" replays a CUDA
graph; "compiled" compiles the networks; "TF32" is compiled and captured in the reference's precision. The first three
ways come first, for all networks, and rows that would begin after the given minutes are left out. For the first student
and teacher an epoch is run too, and the share of it that is not spent on networks and optimiser is found.
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
from reference import BUDGET, as_released, optimiser_of

from bench import datasets, models
from bench.datasets.splits import Data, Split
from bench.execution.speed import operations
from bench.protocol.spec import Spec
from bench.protocol.suites import Training
from bench.training import compiling, cuda_graphs
from bench.training.trainer import Trainer, TrainingModule
from methods.base import Net
from methods.rslad import Rslad

IMAGES = 50_000
INFO = datasets.get("cifar10")
BEST = "compiled, captured"
TF32 = f"TF32, {BEST}"
WAYS = ("reference", "captured", BEST, "as written", "compiled", TF32)


def harness(student: Net, teacher: Net, batch: int, precision: str) -> Trainer:
    """A trainer on random images."""
    training = Training(epochs=1, batch=batch, averaging=("ema",))
    spec = Spec(suite="throughput", role="student", dataset="cifar10", arch="any", method="rslad", hyper={}, teachers={},
                seed=0, training=training, eps=BUDGET.eps, inner_step=BUDGET.step, inner_steps=BUDGET.steps, attacks=(),
                full_checkpoints=(), precision=precision)  # type: ignore[arg-type]  # fmt: skip
    x = torch.randint(256, (IMAGES, *INFO.shape), dtype=torch.uint8, device="cuda")
    split = Split(x, torch.randint(INFO.num_classes, (IMAGES,), device="cuda"))
    objective = TrainingModule(Rslad(), student, {"robust": teacher}, IMAGES).cuda()
    return Trainer(
        objective, Data(INFO, split, split, split, ""), spec, Path(tempfile.gettempdir())
    )


def steps(
    way: str, student: Net, teacher: Net, batch: int
) -> tuple[Callable[[torch.Tensor], Any], Trainer]:
    """A function that makes one step on the images at these positions."""
    student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    run = harness(student, teacher, batch, "fp32" if way in ("reference", TF32) else "bf16")
    if way == "reference":
        plain, taught_by = as_released(student), as_released(teacher)
        optimiser = optimiser_of(plain)

        def plainly(index: torch.Tensor) -> object:
            batch = run.make_batch(index, 0)
            return reference.rslad(plain, taught_by, optimiser, batch.x, batch.y)

        return plainly, run
    run.module.train()
    run.set_learning_rates(0)
    if "compiled" in way:
        index = torch.arange(batch, device="cuda")
        path = compiling.compile_networks(run.module.nets, lambda: rehearsal(run, index))
        assert path == compiling.COMPILED, path
    return (
        run.step_function(0)
        if "captured" in way
        else lambda index: run.update(run.make_batch(index, 0))
    ), run


def rehearsal(run: Trainer, index: torch.Tensor) -> torch.Tensor:
    batch = run.make_batch(index, 0)
    return run.loss_terms(batch, run.attack(batch))[1]


def timed(step: Callable[[torch.Tensor], Any], run: Trainer, seconds: float = 1.0) -> list[float]:
    """Milliseconds of single steps, after a few to warm up."""
    order, found = run.epoch_batches(), []
    with compiling.cudnn_benchmark():
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


def epoch(run: Trainer, step: float) -> dict[str, float]:
    """Seconds of an epoch after the first, and the share that is not the networks' and the optimiser's, for a step's ms."""
    begun = time.perf_counter()
    run._train_epoch(1, lambda *_: None)
    seconds = time.perf_counter() - begun
    drawn = cuda_graphs.StepGraphs(run.device).step_of_epoch(
        lambda index: {"x": run.make_batch(index, 1).x}, epoch_dependent=False
    )
    spent = run.steps * (step - statistics.median(timed(drawn, run))) / 1000
    return {"epoch_seconds": seconds, "outside": 1 - spent / seconds}


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


def row(
    way: str, names: tuple[str, str], nets: tuple[Net, Net], batch: int, top: float, whole: bool
) -> dict[str, Any]:
    """What one way of making the step takes; whole: an epoch too."""
    torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    step, run = steps(way, *nets, batch)
    times = timed(step, run)
    flops, middle = batch * operations(*nets, INFO.shape, BUDGET.steps), statistics.median(times)
    return {
        "student": names[0], "teacher": names[1], "batch": batch, "way": way, "ms": middle,
        "low": min(times), "high": max(times), "images_per_second": 1000 * batch / middle,
        "share_of_peak": flops / (middle / 1000) / top, "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "seconds_to_begin": time.perf_counter() - begun - sum(times) / 1000, **(epoch(run, middle) if whole else {}),
    }  # fmt: skip


def table(rows: list[dict[str, Any]], about: str) -> str:
    """Markdown, the ratio to the reference of the same student, teacher and batch first."""
    columns = "student | teacher | batch | way | ms a step (low to high) | ratio | images/s | share of peak | GiB"
    columns += " | epoch, s | outside networks"
    lines = [about, "", f"| {columns} |", f"| --- | --- | ---: | --- {'| ---: ' * 7}|"]
    slow = {
        (r["student"], r["teacher"], r["batch"]): r["ms"] for r in rows if r["way"] == "reference"
    }
    for r in rows:
        ratio = slow.get((r["student"], r["teacher"], r["batch"]), float("nan")) / r["ms"]
        whole = (
            f"{r['epoch_seconds']:.2f} | {100 * r['outside']:.1f} %" if "outside" in r else " | "
        )
        lines.append(
            f"| {r['student']} | {r['teacher']} | {r['batch']} | {r['way']} | {r['ms']:.1f} ({r['low']:.1f} to "
            f"{r['high']:.1f}) | {ratio:.2f} | {r['images_per_second']:,.0f} | {100 * r['share_of_peak']:.0f} % | "
            f"{r['peak_gib']:.1f} | {whole} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    pairs = [(s, t) for t in given.teachers.split(",") for s in given.students.split(",")]
    cases = [(names, int(batch)) for names in pairs for batch in given.batches.split(",")]
    ways = given.ways.split(";")
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    given.out.mkdir(parents=True, exist_ok=True)
    print(about, flush=True)
    for some in (ways[:3], ways[3:]):
        for number, (names, batch) in enumerate(cases):
            for way in some:
                if time.perf_counter() - begun > 60 * given.minutes:
                    continue
                torch.manual_seed(0)
                nets = models.build(names[0], INFO).cuda(), models.build(names[1], INFO).cuda()
                found = row(way, names, nets, batch, top, whole=way == BEST and names == pairs[0])
                rows[number, ways.index(way)] = found
                print(json.dumps(found), flush=True)
                ordered = [rows[key] for key in sorted(rows)]
                (given.out / "throughput.json").write_text(
                    json.dumps({"about": about, "rows": ordered}, indent=1) + "\n"
                )
                (given.out / "throughput.md").write_text(table(ordered, about))
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
