"""Carry out runs on a machine that is borrowed bare, some minutes at a time."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bench.cli.commands import run
from bench.cli.parsing import Command, parse_options, split_run_words
from bench.protocol.options import DataFolder, StoreFolder, option
from bench.system.errors import UsageError, continue_hint

RUN = "slices run"


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Write source, data, wheels and unfinished work into a folder, in parts, with unpack.py."""

    folder: Positional[Annotated[Path, option("DIR", "the pack")]]
    dataset: Annotated[str, option("NAMES", "data sets to pack, with commas", "none")] = ""
    have: Annotated[
        Path | None,
        option("FILE", "what that machine has, from `pip freeze` there; packs wheels of the rest"),
    ] = None
    python: Annotated[str, option("X.Y", "the version of Python there", "this one's")] = ""
    store: StoreFolder = Path("runs")
    data_root: DataFolder = Path("data")


@dataclass(frozen=True, kw_only=True)
class RunSliceOptions:
    """Carry out `run` for some minutes; write records, and the store in parts, into a folder.

    The words of `run` come after `--`, and its runs in their order. It is stopped as by Ctrl-C: the
    same words continue, here or where the folder is joined.
    """

    folder: Positional[Annotated[Path, option("DIR", "what is to be brought back")]]
    minutes: Annotated[float, option("X", "time to run; stopping and writing come on top")]


@dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """Take what a slice brought back into a store, which then continues."""

    folder: Positional[Annotated[Path, option("DIR", "what `slices run` wrote")]]
    store: StoreFolder = Path("runs")


# The options and the words of `run`.
SliceRequest = tuple[RunSliceOptions, list[str]]


def pack_slice(options: PackOptions) -> None:
    """Write the pack."""
    from bench.records import slice_pack, slices

    python = options.python or f"{sys.version_info.major}.{sys.version_info.minor}"
    names = options.dataset.split(",") if options.dataset else []
    if not re.fullmatch("3[.][0-9]{1,2}", python):
        raise UsageError(f"--python {python!r}: a version such as 3.12")
    # Nothing is written for a request that cannot be met.
    slices.local_database(options.store)
    slice_pack.data_files(names, options.data_root)
    if options.have:
        slice_pack.read_packages(options.have)
    options.folder.mkdir(parents=True, exist_ok=True)
    slice_pack.remove_pack(options.folder)
    slices.write_store(options.store, options.folder, slice_pack.PART_BYTES, finished=False)
    slice_pack.pack_data(options.folder, names, options.data_root)
    if options.have:
        slice_pack.pack_wheels(options.folder, options.have, python)
    slice_pack.pack_source(options.folder)
    print(f"unpack there: python {options.folder / 'unpack.py'} DIR")


def read_request(argv: Sequence[str]) -> SliceRequest:
    """Return the options of a slice and the words of its runs."""
    before, words = split_run_words(argv)
    options = parse_options(RunSliceOptions, before, RUN)
    if not words:
        raise UsageError("missing: `--` and the words of `run`, such as -- --method rslad")
    if not options.minutes > 0:
        raise UsageError(f"--minutes {options.minutes}: more than 0")
    return options, words


def run_slice(request: SliceRequest) -> int:
    """Carry out the runs; return 0 if they ended or time is up."""
    from bench.execution import plan
    from bench.records import slices
    from bench.system import environment, parts

    options, words = request
    # What `run` would refuse is refused here.
    run_options, hyper = run.read_request(words)
    plan.plan_runs(run_options, hyper)
    environment.resolve_device(run_options.device)
    deadline = time.monotonic() + 60 * options.minutes
    code = slices.run_slice(
        words, run_options.store, options.folder, lambda: time.monotonic() > deadline
    )
    if code is None:
        print(f"time is up: {continue_hint(run_options.force)} continues")
    if parts.listing(options.folder, parts.STATE).exists():
        print(f"bring {options.folder} home, then: python -m bench slices join {options.folder}")
    return code or 0


def join_slice(options: JoinOptions) -> None:
    """Join the parts."""
    from bench.records import slices

    slices.join_slice(options.folder, options.store)


COMMAND = {
    "pack": Command(PackOptions, pack_slice),
    "run": Command(RunSliceOptions, run_slice, read_request),
    "join": Command(JoinOptions, join_slice),
}
