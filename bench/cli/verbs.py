"""The smaller verbs: each takes its options and returns an exit code."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import datasets, models, teachers
from bench.cli import options
from bench.datasets import Dataset, data
from bench.execution.plan import split_names
from bench.protocol import suites
from bench.protocol.suites import Suite
from bench.system.errors import BenchError, UsageError, unknown_name
from bench.system.progress import Progress
from bench.teachers import zoo

if TYPE_CHECKING:
    import torch

    from attacks import Evaluation
    from methods.base import Net


DEFAULT_ATTACKS = {"Linf": ("fgsm", "pgd20", "pgd20_trades", "cw_inf", "aa"), "L2": ("pgd20", "aa")}


def evaluate(given: options.Evaluate) -> int:
    """Attacks a checkpoint and prints a line for each attack."""
    from attacks import catalog
    from attacks.record import is_record
    from bench.models import checkpoint
    from bench.system import environment

    info, chosen = (
        datasets.get(given.dataset),
        split_names(given.attacks) or DEFAULT_ATTACKS[given.norm],
    )
    for name in catalog.expand(chosen):
        base, at, surrogate = name.partition("@")
        if base not in catalog.ATTACKS and name not in catalog.CONTROLS:
            raise unknown_name("attack", name, [*catalog.ATTACKS, "corruptions", *catalog.CONTROLS])
        if at and (surrogate != "surrogate" or not given.surrogate):
            raise UsageError(f"{name}: write {base}@surrogate and give the file with --surrogate")
    if (given.surrogate or given.surrogate_arch) and not any("@" in name for name in chosen):
        raise UsageError(
            "--surrogate is for attacks such as pgd20@surrogate: name one with --attacks"
        )
    eps = (
        given.eps if given.eps is not None else suite_for(info).eps if given.norm == "Linf" else 0.5
    )
    if not 0 <= eps <= (1 if given.norm == "Linf" else math.inf):
        raise UsageError(
            f"--eps {eps}: between 0 and 1, in pixels of [0, 1], such as 8/255 = 0.03137"
        )
    if not 0 <= given.seed < 2**63:
        raise UsageError(f"--seed {given.seed}: between 0 and 2^63 - 1")
    if given.out and given.out.exists() and not is_record(given.out):
        raise UsageError(
            f"--out {str(given.out)!r} exists and holds no verdicts: choose another file"
        )
    if given.batch_size < 1:
        raise UsageError(f"--batch-size {given.batch_size}: at least 1")
    models.check(given.arch)
    device = environment.resolve_device(given.device)
    net = checkpoint.load(given.checkpoint, given.arch, info, given.sha256 or None).to(device)
    surrogates = {}
    if given.surrogate:
        surrogates["surrogate"] = checkpoint.load(
            given.surrogate, given.surrogate_arch or given.arch, info
        ).to(device)
    test = data.load(given.dataset, given.data_root, limit_test=given.limit_test).test
    setting = {"eps": eps, "norm": given.norm, "seed": given.seed, "batch_size": given.batch_size}
    with room(given.batch_size):
        result = attacked(net, test, chosen, device, given.out, surrogates=surrogates, **setting)
    report(result, len(test), f"{'l-inf' if given.norm == 'Linf' else 'L2'} {eps:.4g}")
    return 0


@contextmanager
def room(batch: int) -> Iterator[None]:
    """Raises BenchError where memory does not suffice for batches of so many images."""
    try:
        yield
    except (
        RuntimeError,
        MemoryError,
    ) as error:  # torch has a class of its own on CUDA devices alone
        if isinstance(error, RuntimeError) and not re.search(
            "out of memory|allocate memory", str(error)
        ):
            raise
        raise BenchError(f"out of memory: a --batch-size below {batch} needs less") from error


def suite_for(info: Dataset) -> Suite:
    """The first suite that covers a data set."""
    return next(suite for suite in suites.SUITES.values() if info.name in suite.datasets)


def attacked(
    net: Net,
    test: data.Split,
    chosen: tuple[str, ...],
    device: torch.device,
    out: Path | None = None,
    **setting: Any,
) -> Evaluation:
    """Attacks `net` on a test split with progress on standard error; `setting` goes to `attacks.evaluate`."""
    import attacks
    from bench.training.acceleration import keep_memory

    if device.type == "cpu":
        keep_memory()
    x, y = data.to_float(test.x).to(device), test.y.to(device)
    try:
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
        with Progress([(0.0, 0.0)]) as progress:
            progress.start("evaluate")
            return attacks.evaluate(
                net, x, y, chosen, record=out, progress=progress.tick, **setting
            )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise BenchError(f"cannot write {str(out)!r}: {error.strerror}") from error


def report(result: Evaluation, count: int, threat: str) -> None:
    """Prints accuracies, what they cost, and why they may not be believed."""
    print(f"{count} test images, {threat}")
    for name, value in result.accuracy().items():
        cost = result.cost.get(name)
        spent = ""
        if cost:
            spent = f"{cost.seconds:8.1f} s {cost.forwards / count:8.0f} forward passes an image"
            spent += f" {cost.images_per_second:9.0f} passes/s"
        print(f"{name:14}{100 * value:6.2f} %{spent}")
    for name, evidence in result.flags.items():
        print(f"flag {name}: {evidence}")


def teacher_import(given: options.TeacherImport) -> int:
    """Copies a checkpoint among the teachers once hash, keys and accuracy have been checked."""
    from bench.models import checkpoint

    teachers.check_images(given.limit_test, teachers.FEWEST)
    release = zoo.resolve(
        given.name, given.arch, given.dataset, given.sha256.lower(), given.mean, given.std
    )
    info = datasets.get(release.dataset)
    models.check(release.arch)
    net = checkpoint.load(
        given.file, release.arch, info, release.sha256 or None, release.mean, release.std
    )
    if not release.sha256:
        checkpoint.check_intact(given.file)
    card = teachers.draft(given.store, release, checkpoint.sha256_of(given.file), given.file.name)
    card = teacher_measured(net, card, release, release.eps, given)
    teachers.keep(given.store, given.file, card)
    if not release.sha256:
        print(f"no sha256 was stated: the card holds the file's own, {card.sha256}")
    print(f"{card.identity} is ready: `run --teacher {given.name}`")
    return 0


def teacher_list(given: options.TeacherList) -> int:
    """A line for each teacher at hand, then for each release."""
    for card in teachers.cards(given.store):
        print(
            f"{card.identity:40} {card.arch:16} {card.dataset:10} {card.sha256[:16]} {card.origin}; {card.measured}"
        )
    print(
        "\nreleases, for `teacher import NAME FILE` when the file is downloaded (clean and AutoAttack in percent):"
    )
    for known in zoo.RELEASES:
        accuracy = f"{known.clean:5.2f} {known.autoattack:5.2f}"
        print(
            f"{known.name:40} {known.arch:20} {known.dataset:9} {accuracy}  {known.paper:32} {known.where}"
        )
    return 0


def teacher_verify(given: options.TeacherVerify) -> int:
    """Checks hash and keys, measures clean accuracy and PGD-20, and writes them on the card."""
    teachers.check_images(given.limit_test, 1)
    card = teachers.find(given.store, given.name)
    info = datasets.get(card.dataset)
    release = (
        zoo.resolve(card.name, card.arch, info.name, "", card.mean, card.std)
        if card.imported
        else None
    )
    eps = (
        suites.get(given.suite).eps
        if given.suite
        else release.eps
        if release
        else suite_for(info).eps
    )
    net = teachers.load(given.store, card, info)
    print(f"{card.identity}: file has sha256 {card.sha256}, a {card.arch} for {card.dataset}")
    teachers.note(given.store, teacher_measured(net, card, release, eps, given))
    return 0


def teacher_measured(
    net: Net,
    card: teachers.Card,
    release: zoo.Release | None,
    eps: float,
    given: options.TeacherImport | options.TeacherVerify,
) -> teachers.Card:
    """The card with clean accuracy and PGD-20; raises BenchError where they are not what `release` must have."""
    from bench.system import environment

    device = environment.resolve_device(given.device)
    whole, net = data.load(card.dataset, given.data_root).test, net.to(device)
    test, total = data.Split(whole.x[: given.limit_test], whole.y[: given.limit_test]), len(whole)
    if release:
        teachers.check_clean(net, test, total, release)
    result = attacked(net, test, ("pgd20",), device, eps=eps)
    report(result, len(test), f"l-inf {eps:.4g}")
    clean, pgd20 = (round(100 * result.accuracy()[name], 2) for name in ("clean", "pgd20"))
    card = dataclasses.replace(card, images=len(test), eps=eps, clean=clean, pgd20=pgd20)
    return teachers.checked(card, total, release) if release else card


def list(_: options.List) -> int:
    """Everything that has a name."""
    import methods
    from attacks import catalog

    transfers = ", ".join(name for name in catalog.ATTACKS if catalog.transfers(name))
    sections = {
        "methods": {name: about_method(name) for name in methods.names()},
        "suites": {name: suite.about for name, suite in suites.SUITES.items()},
        "data sets": {name: info.about for name, info in datasets.DATASETS.items()},
        "models": dict.fromkeys(models.EXAMPLES, ""),
        "attacks": catalog.ABOUT
        | {"NAME@surrogate": "transfer: made on another network (" + transfers + ")"},
        "controls": {
            "corruptions": "noise-1 to noise-5, blur-, contrast- and jpeg-: common corruptions, in no ball"
        },
    }
    for title, entries in sections.items():
        print(title)
        for name, about in entries.items():
            print(f"  {name:18}{about}".rstrip())
    return 0


def about_method(name: str) -> str:
    """First line of a method's class, with its defaults; what is wrong with a plugin of that name instead or after it."""
    import methods

    fault = methods.fault(name) if name in methods.plugins() else ""
    if fault and name not in methods.builtin():
        return fault
    method = methods.load(name)
    values = ", ".join(f"{field.name}={field.default}" for field in dataclasses.fields(method))
    formula = (method.__doc__ or "").strip().partition("\n")[0]
    return f"{formula}{f' [{values}]' if values else ''}{f'; a plugin of this name {fault}' if fault else ''}"


def data_fetch(given: options.DataFetch) -> int:
    print(data.fetch(given.name, given.data_root))
    return 0


def data_import(given: options.DataImport) -> int:
    print(data.import_data(given.name, given.source, given.data_root))
    return 0


def data_verify(given: options.DataVerify) -> int:
    print(data.verify(given.name, given.data_root))
    return 0


def doctor(given: options.Doctor) -> int:
    """What this machine offers and what lies around: nothing is changed."""
    from bench.system import environment
    from bench.tracking.store import TrackingStore, store_exists

    device = environment.resolve_device(given.device)
    for name, value in environment.describe_environment(device).items():
        print(f"{name:14}{value}")
    if given.speed:
        from bench.execution import speed

        for line in speed.lines(suites.SUITES.values(), device):
            print(line, flush=True)
    else:
        for suite in suites.SUITES.values():
            print(f"{suite.name:14}{images_per_second(suite, device)}")
    for name in datasets.DATASETS:
        try:
            print(data.verify(name, given.data_root))
        except BenchError as error:
            print(f"{name}: {error}")
    if not store_exists(given.store):
        print(f"no record yet in {str(given.store)!r}")
        return 0
    store = TrackingStore(given.store)
    print(f"record: {store.uri}")
    for run in store.unfinished():
        print(f"interrupted or running: {run.info.run_name}: {run.data.tags.get('command', '')}")
    return 0


def images_per_second(suite: Suite, device: torch.device) -> str:
    """Throughput of the suite's first student, the unit of every cost: one forward and one backward pass."""
    import torch

    net = models.build(suite.students[0], datasets.get(suite.datasets[0])).to(device)
    x = torch.rand(4, *datasets.get(suite.datasets[0]).shape, device=device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.5:
        net(x).sum().backward()
        count += len(x)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return f"{suite.students[0]}: {count / (time.perf_counter() - start):,.0f} images a second, forward and backward"


def run(given: options.Run, hyper: dict[str, Any]) -> int:
    """The verb `run`; returns the exit code."""
    from bench.execution import grid, plan

    return grid.run_grid(given, plan.plan_runs(given, hyper), dry_run=given.dry_run)


def teacher_train(given: options.TeacherTrain) -> int:
    """The verb `teacher train`."""
    from bench.execution import grid, plan

    suite = plan.resolve(given)
    names = plan.requested_datasets(given, suite)
    return grid.run_grid(
        given, [plan.plan_teacher(given, suite, name, given.role) for name in names]
    )


def tune(given: options.Tune) -> int:
    """The verb `tune`; returns the exit code."""
    from bench.tuning import search

    return search.tune(given, given.dry_run)
