"""Train students, for `bench.run` and the command `run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, get_type_hints

import methods
from bench.api.keywords import KeywordReader, call_log, takes_options
from bench.protocol.options import DryRun, RunOptions, UnknownFlag, flags_of, option
from bench.system.errors import BenchError, UsageError, unknown_name
from bench.system.log import set_verbosity

if TYPE_CHECKING:
    import pandas as pd

    from bench.execution.plan import PlannedRun
    from bench.protocol.tuned_config import TunedConfig
    from methods.base import Method

Options = TypeVar("Options")

# The first columns of the results of runs.
LEAD = ("suite", "role", "dataset", "student", "method", "variant", "teacher", "seed")
METAVARS: dict[Any, str] = {float: "X", int: "N"}


@dataclass(frozen=True, kw_only=True)
class RunCommandOptions(RunOptions):
    """Train students with one or more methods, evaluate them, record everything.

    What is already recorded is skipped, what was interrupted is resumed, teachers are trained on
    first use.
    """

    config: Annotated[
        Path | None,
        option("FILE", "a configuration that `tune` wrote: method, suite, student and all values"),
    ] = None
    dry_run: DryRun = False


# The options, and the hyper-parameters if there is one method.
RunRequest = tuple[RunCommandOptions, dict[str, Any]]


class Reader(Protocol):
    """Reads options from the flags of a command line or from keyword arguments."""

    def partial(self, form: type[Options]) -> Options:
        """Return the options that a dataclass has, and ignore all others."""

    def read(self, form: type[Options], defaults: Mapping[str, Any] | None = None) -> Options:
        """Return the options, all of which the dataclass must have, over `defaults`."""


@takes_options(RunCommandOptions)
def run(method: str | Sequence[str] = "", *, verbose: bool = False, **options: Any) -> pd.DataFrame:
    """Train students with one or more methods, evaluate them, record everything.

    What is already recorded is skipped, what was interrupted is resumed, teachers are trained on
    first use, as by the command `run`. The options are its flags, one method's hyper-parameters
    among them; names with commas may be a list.

    Args:
        method: methods, or "all".
        verbose: print progress and results.
        options: as below, None for the default.

    Returns: a row for each run, teachers too, with its accuracies in [0, 1]; with `dry_run`, of
        those that are recorded.

    Raises:
        bench.system.errors.BenchError: options are wrong (UsageError), or a run failed, after the
            others are recorded; the message is that of the command.
    """
    from attacks.isolation import default_state

    keywords = {"method": method, **options}
    with call_log("run", keywords, verbose), default_state():
        # Warnings of libraries are for the log, as those of the command.
        set_verbosity(quiet=False, verbose=False)
        request = read_request(KeywordReader("run", keywords))
        runs, failures = run_all(*request)
        if failures:
            label, message = next(iter(failures.items()))
            raise BenchError(f"{label}: {message} ({len(failures)} of {len(runs)} runs failed)")
        return collect_results(request[0].store, runs)


def run_all(
    options: RunCommandOptions, hyper: dict[str, Any]
) -> tuple[list[PlannedRun], dict[str, str]]:
    """Plan and carry out runs; return them, and why some failed by their labels."""
    from bench.execution import plan
    from bench.execution.grid.run import run_grid

    runs = plan.plan_runs(options, hyper)
    return runs, run_grid(options, runs, dry_run=options.dry_run)


def collect_results(store: Path, runs: list[PlannedRun]) -> pd.DataFrame:
    """Return a row for each run with what the store's record of it says, if there is one."""
    import pandas as pd

    from bench.records.sync import sync_records
    from leaderboards.read.records import read_record
    from leaderboards.schema import metrics
    from leaderboards.schema.record import RecordError

    folder, rows = sync_records(store).folder, []
    attacks = {"clean", "worst"}
    for run in runs:
        spec = run.spec
        row: dict[str, Any] = {"suite": spec.suite, "variant": run.variant}
        row |= spec.identity_tags | {"seed": spec.seed}
        attacks |= {*spec.attacks}
        with suppress(RecordError):
            record = read_record(folder / spec.record_name)
            row |= {"run_id": record.run_id, "flags": ", ".join(record.flags), **record.metrics}
        rows.append(row)
    measured = [metrics.accuracy_name(attack) for attack in metrics.sort_attacks(attacks)]
    measured += [metrics.TRAIN_SECONDS, metrics.EVAL_SECONDS]
    frame = pd.DataFrame(rows).reindex(columns=[*LEAD, *measured, "flags", "run_id", "spec_id"])
    return frame.rename(columns={name: metrics.column_name(name) for name in measured})


def read_request(reader: Reader) -> RunRequest:
    """Return the options of a run and the hyper-parameters of its method."""
    # The method, `--config` and `--official` decide which other options there are and what their
    # defaults are, so they are read twice.
    partial = reader.partial(RunCommandOptions)
    names = method_names(partial.method)
    config, defaults = None, dict[str, Any]()
    if partial.config:
        if partial.official:
            raise UsageError("--official and --config: one of them")
        config = read_config(partial.config, names)
        names, defaults = [config.method], config.flags
        from bench.execution.plan import check_config_networks

        check_config_networks(partial, config)
    if len(names) != 1:
        return read_without_hyper(reader, names), {}
    method = methods.load(names[0])
    if partial.official:
        from methods.base import official_values

        defaults = official_values(method)
    parsed = reader.read(add_hyper(names[0], method), defaults)
    # Worker processes get the options by pickle, which finds no class that was made here.
    hyper, values = field_values(parsed, method), field_values(parsed, RunCommandOptions)
    # A hyper-parameter of a plugin may have the name of an option that came later.
    options = RunCommandOptions(**{name: values[name] for name in values.keys() - hyper.keys()})
    if config:
        options = check_config(config, parsed, options)
    return options, hyper


def read_without_hyper(reader: Reader, names: Sequence[str]) -> RunCommandOptions:
    """Return the options for no, several or all methods, none of whose own flags exist."""
    try:
        options = reader.read(RunCommandOptions)
    except UnknownFlag as error:
        if any(error.flag in flags_of(methods.load(name)) for name in names):
            hint = "a method's own flags need exactly one --method"
            raise UnknownFlag(error.flag, hint) from None
        raise
    if not options.method:
        from bench.execution.suite_file import resolve_suite

        if not resolve_suite(options.suite).rows:
            raise UsageError("missing: --method, or --config, or a suite with rows of its own")
    return options


def method_names(text: str) -> list[str]:
    """Return the methods in the value of `--method`; none if it is empty or `all`."""
    if text in ("", "all"):
        return []
    names = text.split(",")
    for name in names:
        if name not in methods.names():
            raise unknown_name("method", name, [*methods.names(), "all"])
    return names


def read_config(path: Path, names: Sequence[str]) -> TunedConfig:
    """Return the configuration in a file, which must fit its method and the names, if any."""
    from bench.execution.hyper import check_hyper
    from bench.protocol import tuned_config

    config = tuned_config.read(path)
    if names and [*names] != [config.method]:
        raise UsageError(f"--method {','.join(names)}: {path} is for {config.method}")
    if config.method not in methods.names():
        raise unknown_name("method", config.method, methods.names())
    hyper = check_hyper(config.method, config.hyper, str(path))
    return dataclasses.replace(config, hyper=hyper)


def check_config(
    config: TunedConfig, parsed: object, options: RunCommandOptions
) -> RunCommandOptions:
    """Return the options, without the mark of a tuned row if flags change a value that was found.

    Raise UsageError if the configuration is for another suite.
    """
    from bench.execution.suite_file import resolve_suite

    suite = resolve_suite(options.suite).id
    if config.suite != suite:
        config_run = f"{config.method} in {config.suite}"
        raise UsageError(
            f"--config {str(options.config)!r} is for {config_run}, --suite is {suite}"
        )
    if any(getattr(parsed, name) != value for name, value in config.values.items()):
        return dataclasses.replace(options, tuned=0)
    return options


def add_hyper(name: str, method: type[Method]) -> type[RunCommandOptions]:
    """Return a dataclass of the options of `run` and the hyper-parameters of the method `name`."""
    hints = get_type_hints(method)
    fields: list[Any] = []
    for field in dataclasses.fields(method):
        choices = field.metadata["search"]["choices"]
        kind = Literal[choices] if choices else hints[field.name]
        described = option(METAVARS.get(kind), f"{name}: {field.metadata['help']}")
        default = dataclasses.field(default=field.default)
        fields.append((field.name, Annotated[kind, described], default))
    return dataclasses.make_dataclass(
        "RunOptions", fields, bases=(RunCommandOptions,), frozen=True, kw_only=True,
        namespace={"__doc__": RunCommandOptions.__doc__})  # fmt: skip


def field_values(values: object, form: type[Any]) -> dict[str, Any]:
    """Return the values of the fields of a dataclass, read from an object that has more."""
    return {field.name: getattr(values, field.name) for field in dataclasses.fields(form)}
