"""One cell from start to record: build, train, evaluate each checkpoint, log. Interrupted at any point, it continues."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from torch import Tensor

import attacks
from attacks.verdict_file import ForeignVerdictsError
from bench import data as data_module
from bench import environment, links, models, note, teachers
from bench.data import Data
from bench.devices import ALONE, Group
from bench.errors import BenchError
from bench.models import checkpoint
from bench.note import Outcome
from bench.plan import Cell, work
from bench.spec import Spec
from bench.teachers import Card
from bench.track import FAILED, FINISHED, KILLED, Record, Store
from bench.train import STATE, Objective, Trainer, derive
from methods.base import Net

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

Tick = Callable[[str, int, int], None]
PROBES = 64  # test images for the sanity flags
TEACHERS = (
    "teachers.json"  # a file in the folder of an unfinished run: the checkpoints that teach it
)
AGAIN = "again"  # a file in the folder of an unfinished run whose spec is to be repeated, whatever the record says
CHECKPOINTS = {
    "best": "test",
    "last": "test_last",
    "ema": "test_ema",
    "swa": "test_swa",
}  # file -> prefix of its metrics


@dataclass(frozen=True)
class Workshop:
    """Where and with what cells are carried out."""

    store: Store
    device: torch.device
    code: dict[str, str]  # commit and state of the source
    group: Group = ALONE

    @property
    def root(self) -> Path:
        return self.store.root


def execute(cell: Cell, shop: Workshop, data: Data, passes: float, tick: Tick) -> str:
    """Carries the cell out and records it; returns a line with its result.

    Raises BenchError for what stops this cell; whatever stops it, the record says so and the state stays on disk.
    """
    with held(cell, shop) as folder:
        if recorded(cell, shop):
            return "recorded by another process meanwhile"
        folder.mkdir(exist_ok=True)
        return record(cell, shop, data, passes, tick, folder)


@contextmanager
def held(cell: Cell, shop: Workshop) -> Iterator[Path]:
    """The folder of a cell's unfinished work, for this process alone. Raises BenchError if another is working there."""
    folder = work(shop.root, cell.spec)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder.with_suffix(".lock")).acquire(timeout=0)
    except Timeout as error:
        raise BenchError("another process is working on it") from error
    with lock:
        yield folder


def begin_again(cell: Cell, shop: Workshop) -> None:
    """Leaves the whole cell to do, until it is done, whether it is recorded, half done or neither."""
    with (
        suppress(BenchError),
        held(cell, shop) as folder,
    ):  # `execute` says that another process is working on it
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        (folder / AGAIN).touch()


def recorded(cell: Cell, shop: Workshop) -> bool:
    """Whether nothing is left to do."""
    again = (work(shop.root, cell.spec) / AGAIN).exists()
    return (
        not again
        and not lacks_teacher(cell, shop)
        and shop.store.find(cell.spec, FINISHED) is not None
    )


def lacks_teacher(cell: Cell, shop: Workshop) -> bool:
    """Whether this is a teacher's cell and the teacher's file is missing, whatever the record says."""
    return cell.spec.role == "teacher" and not teachers.exists(shop.root, cell.identity)


def record(cell: Cell, shop: Workshop, data: Data, passes: float, tick: Tick, folder: Path) -> str:
    """Runs the cell under an MLflow run whose status always tells how it ended."""
    anew = not (folder / STATE).exists()
    logged = shop.store.begin(cell.spec, tags(cell, shop.code, shop.group), anew)
    try:
        logged.text(
            "environment.json",
            json.dumps(environment.describe(shop.device) | describe(data), indent=2),
        )
        logged.metrics({"cost/student_passes": passes})
        if cell.spec.teachers:
            logged.tags({"teacher_sha256": json.dumps(weights(cell, shop, folder))})
        with logged.aside("inputs"):
            links.inputs(logged, cell.spec, data)
        outcome = carry_out(cell, shop, data, logged, tick, folder)
        logged.end(FINISHED)
    except (KeyboardInterrupt, SystemExit):
        logged.end(KILLED, "interrupted")
        raise
    except Exception as error:
        logged.end(FAILED, " ".join(str(error).split())[:300] or type(error).__name__)
        if isinstance(error, BenchError):
            raise
        with suppress(Exception):
            logged.text("traceback.txt", traceback.format_exc())
        raise BenchError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    shutil.rmtree(folder)
    shown = {
        key: outcome.accuracy["best"][key]
        for key in ("clean", "pgd20", "aa")
        if key in outcome.accuracy["best"]
    }
    return ", ".join(f"{key} {100 * value:.1f}" for key, value in shown.items())


def weights(cell: Cell, shop: Workshop, folder: Path) -> dict[str, str]:
    """The sha256 of each teacher's checkpoint, by role. Raises BenchError if others taught a part of the training before."""
    spec, path = cell.spec, folder / TEACHERS
    found = {
        role: teachers.find(shop.root, name, spec.dataset).sha256
        for role, name in spec.teachers.items()
    }
    if (folder / STATE).exists() and path.exists() and path.read_text() != json.dumps(found):
        raise BenchError(
            "another checkpoint of its teacher taught the first part: --force begins this run again"
        )
    path.write_text(json.dumps(found))
    return found


def carry_out(
    cell: Cell, shop: Workshop, data: Data, logged: Record, tick: Tick, folder: Path
) -> Outcome:
    """Trains, evaluates each checkpoint and logs all of it; then what makes the run easy to read in MLflow."""
    spec = cell.spec
    environment.forget_peak(shop.device)
    shop.group.tell((cell, folder))
    trainer = Trainer(objective(cell, shop, data), data.to(shop.device), spec, folder, shop.group)
    try:
        state = trainer.fit(lambda row, epoch: logged.epoch(total(row), epoch), tick)
    except Exception as error:
        if shop.group.size > 1 and not isinstance(
            error, BenchError
        ):  # which stops all processes alike
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        raise
    logged.metrics(
        {
            "cost/train_seconds": state.seconds,
            "cost/peak_bytes": environment.peak_bytes(shop.device),
        }
    )
    logged.tags({"training_path": ", ".join(trainer.path) or "as written"})
    hashes = {
        name: checkpoint.sha256_of(folder / f"{name}.pt")
        for name in CHECKPOINTS
        if (folder / f"{name}.pt").exists()
    }
    model = None
    with logged.aside("model"):
        model = links.checkpoint(logged, cell, tags(cell, shop.code, shop.group))
    accuracy, flags = {}, dict[str, str]()
    for name in hashes:
        path = folder / f"{name}.pt"
        net = checkpoint.load(path, spec.arch, data.info).to(shop.device)
        full = name in spec.full_checkpoints
        found, doubts = evaluate(net, spec, data.test, full, folder / f"verdicts_{name}", tick)
        flags |= doubts if name == "best" else {}
        values = {
            f"{CHECKPOINTS[name]}/{key}": value
            for key, value in found.items()
            if not key.startswith("cost/")
        }
        logged.metrics(values, link=links.link(model, data, values) if name == "best" else {})
        accuracy[name] = found
        logged.file(path, "checkpoints")
    for verdicts in sorted(folder.glob("verdicts_*.npz")):
        logged.file(verdicts, "verdicts")
    logged.tags(
        {"flags": json.dumps(flags)} | {f"sha256.{name}": digest for name, digest in hashes.items()}
    )
    costs = {key for found in accuracy.values() for key in found if key.startswith("cost/")}
    logged.metrics({key: sum(found.get(key, 0.0) for found in accuracy.values()) for key in costs})
    if spec.role == "teacher":
        best = folder / "best.pt"
        origin = f"trained here, {spec.suite}, spec {spec.id}"
        teachers.keep(
            shop.root, best, Card(cell.identity, spec.arch, spec.dataset, hashes["best"], origin)
        )
    judge = "val/robust" if cell.method.adversarial else "val/clean"
    chosen = next(row for row in state.history if row.get(judge) == state.best)
    outcome = Outcome(state.history, chosen, accuracy, flags, state.seconds)
    present(cell, shop, logged, model, outcome, folder)
    return outcome


def total(row: dict[str, float]) -> dict[str, float]:
    """An epoch's metrics with the sum of the loss's terms, the one curve that all methods have in common."""
    return {
        "train/loss": sum(value for name, value in row.items() if name.startswith("train/"))
    } | row


def present(
    cell: Cell,
    shop: Workshop,
    logged: Record,
    model: LoggedModel | None,
    outcome: Outcome,
    folder: Path,
) -> None:
    """Note, figures and aliases of a run whose numbers are in."""
    with logged.aside("note"):
        logged.tag(
            note.TAG,
            note.of_run(cell.spec, tags(cell, shop.code, shop.group), outcome, logged.run_id),
        )
    with logged.aside("figures"):
        note.draw(outcome, folder / note.FIGURES)
        logged.files(folder / note.FIGURES, note.FIGURES)
    if model:
        with logged.aside("alias"):
            links.register(shop.store, logged, cell, model, outcome)


def objective(cell: Cell, shop: Workshop, data: Data) -> Objective:
    """Student, teachers and parts on the device; initial weights depend on the seed alone."""
    spec = cell.spec
    frozen = {}
    for role, identity in spec.teachers.items():
        card = teachers.find(shop.root, identity, spec.dataset)
        frozen[role] = teachers.load(shop.root, card, data.info).to(shop.device)
    torch.manual_seed(derive("init", spec.seed))
    student = models.build(spec.arch, data.info).to(shop.device)
    return Objective(cell.method, student, frozen, len(data.train)).to(shop.device)


def evaluate(
    net: Net, spec: Spec, test: data_module.Split, full: bool, stem: Path, tick: Tick
) -> tuple[dict[str, float], dict[str, str]]:
    """Accuracies by attack with `worst`, counts `n` and `aa_n`, and `cost/...`; then the sanity flags.

    AutoAttack and flags only if `full`. AutoAttack sees the first `limit_aa` images; `worst` is over those images that
    saw every attack.
    """
    x, y = data_module.to_float(test.x), test.y
    device = next(net.parameters()).device
    x, y = x.to(device), y.to(device)
    start = time.perf_counter()
    quick = [name for name in spec.attacks if name != "aa"]
    first = run_attacks(
        net, x, y, quick, spec, stem.with_suffix(".npz"), tick, PROBES if full else 0
    )
    parts, worst, flags = [first], first.worst, first.flags
    values = {"n": float(len(x)), **first.accuracy()}
    if full and "aa" in spec.attacks:
        count = min(spec.limit_aa or len(x), len(x))
        second = run_attacks(
            net, x[:count], y[:count], ["aa"], spec, stem.with_name(f"{stem.name}_aa.npz"), tick
        )
        parts.append(second)
        both = first.first_images(count) | second
        worst, flags = both.worst, flags | both.contradictions()
        values |= {"aa": second.accuracy()["aa"], "aa_n": float(count)}
    costs = [cost for part in parts for cost in part.cost.values()]
    values |= {
        "worst": worst.float().mean().item(),
        "cost/eval_seconds": time.perf_counter() - start,
        "cost/eval_forwards": float(sum(cost.forwards for cost in costs)),
        "cost/eval_backwards": float(sum(cost.backwards for cost in costs)),
        **{
            f"cost/{name}_seconds": cost.seconds
            for part in parts
            for name, cost in part.cost.items()
        },
    }
    return values, flags


def run_attacks(
    net: Net,
    x: Tensor,
    y: Tensor,
    names: list[str],
    spec: Spec,
    path: Path,
    tick: Tick,
    probes: int = 0,
) -> attacks.Evaluation:
    try:
        return attacks.evaluate(
            net, x, y, names, eps=spec.eps, probes=probes, record=path, progress=tick
        )
    except ForeignVerdictsError:  # of an earlier version of the attacks
        path.unlink()
        return attacks.evaluate(
            net, x, y, names, eps=spec.eps, probes=probes, record=path, progress=tick
        )


def tags(cell: Cell, code: dict[str, str], group: Group = ALONE) -> dict[str, str]:
    """What people and leaderboards look a run up by."""
    spec = cell.spec
    return {
        "role": spec.role,
        "spec_id": spec.id,
        "suite": spec.suite,
        "dataset": spec.dataset,
        "method": spec.method,
        "student": spec.arch,
        "teacher": spec.teacher,
        "variant": cell.variant,
        "sets": ",".join(cell.sets),
        "seed": str(spec.seed),
        "command": group.command(cell.command),
        **code,
    }


def describe(data: Data) -> dict[str, object]:
    """The data as used."""
    sizes = {"num_train": len(data.train), "num_val": len(data.val), "num_test": len(data.test)}
    return {"data": {**dataclasses.asdict(data.info), **sizes, "sha256": data.sha256}}
