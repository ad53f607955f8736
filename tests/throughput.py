"""How fast a CUDA device trains: the harness against the authors' way of writing the step.

    python tests/throughput.py [--out DIR] [--students A,B] [--teachers A,B] [--batches 128,512]
                               [--ways "A;B"] [--minutes 9]

Needs the packages alone: the images are random. Writes throughput.json and throughput.md. A step
is RSLAD's with PGD-10 (tests/reference.py). "as written" is the harness in bf16, channels last,
folded, and no more; "captured" replays a CUDA graph; "compiled" compiles the networks; "TF32" is
compiled and captured in the reference's precision. The first three ways come first, for all
networks, and rows that would begin after the given minutes are left out. For the first student
and teacher an epoch is run too, to find the share of it that networks and optimiser do not take.
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
from specs import make_spec

from bench import datasets, models
from bench.datasets.splits import Data, Split
from bench.execution.speed import step_operations
from bench.training import compiling, cuda_graphs
from bench.training.trainer import Trainer, TrainingModule
from leaderboards.schema.spec import Training
from methods.base import Net
from methods.rslad import Rslad

IMAGES = 50_000
INFO = datasets.get("cifar10")
BEST = "compiled, captured"
TF32 = f"TF32, {BEST}"
WAYS = ("reference", "captured", BEST, "as written", "compiled", TF32)
# As many of the ways are measured for all networks before the others.
FIRST_WAYS = 3
COLUMNS = (
    "student",
    "teacher",
    "batch",
    "way",
    "ms a step (low to high)",
    "ratio",
    "images/s",
    "share of peak",
    "GiB",
    "epoch, s",
    "outside networks",
)
Step = Callable[[torch.Tensor], Any]
Row = dict[str, Any]


def make_trainer(student: Net, teacher: Net, batch: int, precision: Any) -> Trainer:
    """Return a trainer on random images."""
    spec = make_spec(
        Training(epochs=1, batch=batch, averaging=("ema",)),
        eps=BUDGET.eps,
        inner_step=BUDGET.step,
        inner_steps=BUDGET.steps,
        precision=precision,
    )
    x = torch.randint(256, (IMAGES, *INFO.shape), dtype=torch.uint8, device="cuda")
    split = Split(x, torch.randint(INFO.num_classes, (IMAGES,), device="cuda"))
    data = Data(INFO, split, split, split, "")
    module = TrainingModule(Rslad(), student, {"robust": teacher}, IMAGES).cuda()
    return Trainer(module, data, spec, Path(tempfile.gettempdir()))


def make_step(way: str, student: Net, teacher: Net, batch: int) -> tuple[Step, Trainer]:
    """Return a function that makes one step on the images at some positions, and its trainer."""
    student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    precision = "fp32" if way in ("reference", TF32) else "bf16"
    trainer = make_trainer(student, teacher, batch, precision)
    if way == "reference":
        return make_reference_step(trainer, student, teacher), trainer

    def run_step(index: torch.Tensor) -> object:
        return trainer.update(trainer.make_batch(index, 0))

    trainer.module.train()
    trainer.set_learning_rates(0)
    if "compiled" in way:
        compile_networks(trainer, batch)
    if "captured" in way:
        return trainer.step_function(0), trainer
    return run_step, trainer


def make_reference_step(trainer: Trainer, student: Net, teacher: Net) -> Step:
    """Return the authors' step, which takes only its images from the trainer."""
    student, teacher = as_released(student), as_released(teacher)
    optimiser = optimiser_of(student)

    def run_step(index: torch.Tensor) -> object:
        batch = trainer.make_batch(index, 0)
        return reference.rslad(student, teacher, optimiser, batch.x, batch.y)

    return run_step


def compile_networks(trainer: Trainer, size: int) -> None:
    index = torch.arange(size, device="cuda")

    def rehearse() -> torch.Tensor:
        batch = trainer.make_batch(index, 0)
        return trainer.loss_terms(batch, trainer.attack(batch))[1]

    path = compiling.compile_networks(trainer.module.nets, rehearse)
    assert path == compiling.COMPILED, path


def time_steps(run_step: Step, trainer: Trainer, seconds: float = 1.0) -> list[float]:
    """Return milliseconds of 5 to 40 single steps, after a few to warm up."""
    batches = trainer.epoch_batches()
    times: list[float] = []
    with compiling.cudnn_benchmark():
        for index in batches[:4]:
            run_step(index)
        torch.cuda.synchronize()
        began = time.perf_counter()
        while len(times) < 5 or (time.perf_counter() - began < seconds and len(times) < 40):
            start, end = make_event(), make_event()
            start.record()
            run_step(batches[len(times) % len(batches)])
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return times


def make_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def time_epoch(trainer: Trainer, step_ms: float) -> dict[str, float]:
    """Return the seconds of an epoch after the first, and the share spent outside networks.

    That is the time which neither networks nor optimiser take. `step_ms`: milliseconds of a step.
    """
    began = time.perf_counter()
    trainer._train_epoch(1, lambda *_: None)
    seconds = time.perf_counter() - began

    def draw_batch(index: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": trainer.make_batch(index, 1).x}

    graphs = cuda_graphs.StepGraphs(trainer.device)
    captured_draw = graphs.step_of_epoch(draw_batch, epoch_dependent=False)
    draw_ms = statistics.median(time_steps(captured_draw, trainer))
    in_networks = trainer.steps_per_epoch * (step_ms - draw_ms) / 1000
    return {"epoch_seconds": seconds, "outside": 1 - in_networks / seconds}


def peak_rate(size: int = 8192) -> float:
    """Return the rate of a bf16 matrix product, in FLOP/s."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        a @ b
    start, end = make_event(), make_event()
    start.record()
    for _ in range(20):
        a @ b
    end.record()
    end.synchronize()
    seconds: float = start.elapsed_time(end) / 1000
    return 20 * 2 * size**3 / seconds


def measure_way(way: str, names: tuple[str, str], batch: int, peak: float, with_epoch: bool) -> Row:
    """Measure one way of making the step; `names`: architectures of student and teacher."""
    torch.manual_seed(0)
    student = models.build(names[0], INFO).cuda()
    teacher = models.build(names[1], INFO).cuda()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    run_step, trainer = make_step(way, student, teacher, batch)
    times = time_steps(run_step, trainer)
    operations = batch * step_operations(student, teacher, INFO.shape, BUDGET.steps)
    median = statistics.median(times)
    row = {
        "student": names[0],
        "teacher": names[1],
        "batch": batch,
        "way": way,
        "ms": median,
        "low": min(times),
        "high": max(times),
        "images_per_second": 1000 * batch / median,
        "share_of_peak": operations / (median / 1000) / peak,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "seconds_to_begin": time.perf_counter() - began - sum(times) / 1000,
    }
    if with_epoch:
        row |= time_epoch(trainer, median)
    return row


def markdown_table(rows: list[Row], about: str) -> str:
    """Return a table with the ratio to the reference of the same student, teacher and batch."""
    lines = [about, ""]
    lines.append(f"| {' | '.join(COLUMNS)} |")
    lines.append(f"| --- | --- | ---: | --- {'| ---: ' * 7}|")
    reference_ms = {}
    for row in rows:
        if row["way"] == "reference":
            reference_ms[row["student"], row["teacher"], row["batch"]] = row["ms"]
    for row in rows:
        case = row["student"], row["teacher"], row["batch"]
        ratio = reference_ms.get(case, float("nan")) / row["ms"]
        lines.append(f"| {' | '.join(format_row(row, ratio))} |")
    return "\n".join(lines) + "\n"


def format_row(row: Row, ratio: float) -> list[str]:
    values = [
        row["student"],
        row["teacher"],
        str(row["batch"]),
        row["way"],
        f"{row['ms']:.1f} ({row['low']:.1f} to {row['high']:.1f})",
        f"{ratio:.2f}",
        f"{row['images_per_second']:,.0f}",
        f"{100 * row['share_of_peak']:.0f} %",
        f"{row['peak_gib']:.1f}",
    ]
    if "outside" in row:
        return [*values, f"{row['epoch_seconds']:.2f}", f"{100 * row['outside']:.1f} %"]
    return [*values, "", ""]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("throughput"))
    parser.add_argument("--students", default="resnet18,mobilenetv2")
    parser.add_argument("--teachers", default="resnet18,wrn34-10")
    parser.add_argument("--batches", default="128,512,1024")
    parser.add_argument("--ways", default=";".join(WAYS))
    parser.add_argument("--minutes", type=float, default=9)
    return parser.parse_args()


def describe_device(peak: float) -> str:
    name, cuda = torch.cuda.get_device_name(), torch.version.cuda
    return (
        f"{name}, PyTorch {torch.__version__}, CUDA {cuda}; a bf16 matrix product "
        f"reaches {peak / 1e12:.0f} TFLOP/s. Medians of at least 5 steps."
    )


def write_results(out: Path, rows: list[Row], about: str) -> None:
    content = json.dumps({"about": about, "rows": rows}, indent=1)
    (out / "throughput.json").write_text(content + "\n")
    (out / "throughput.md").write_text(markdown_table(rows, about))


def main() -> None:
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here")
    began = time.perf_counter()
    peak = peak_rate()
    about = describe_device(peak)
    students, teachers = arguments.students.split(","), arguments.teachers.split(",")
    pairs = [(student, teacher) for teacher in teachers for student in students]
    cases = [(names, int(batch)) for names in pairs for batch in arguments.batches.split(",")]
    ways = arguments.ways.split(";")
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(about, flush=True)
    order = [(case, way) for case in cases for way in ways[:FIRST_WAYS]]
    order += [(case, way) for case in cases for way in ways[FIRST_WAYS:]]
    rows: dict[tuple[int, int], Row] = {}
    for (names, batch), way in order:
        if time.perf_counter() - began > 60 * arguments.minutes:
            break
        with_epoch = way == BEST and names == pairs[0]
        row = measure_way(way, names, batch, peak, with_epoch)
        print(json.dumps(row), flush=True)
        rows[cases.index((names, batch)), ways.index(way)] = row
        write_results(arguments.out, [rows[key] for key in sorted(rows)], about)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
