"""The command line: finds the verb, parses its options with tyro, turns every expected error into one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bench.system import errors, signals
from bench.system.errors import BenchError, UsageError, continue_hint, unknown_name
from methods import PluginError

if TYPE_CHECKING:
    from bench.protocol.tuned_config import TunedConfig

SUMMARY = {
    "run": "train students with one or more methods, evaluate, record",
    "tune": "search hyper-parameters on validation images, then test the best",
    "evaluate": "attack any checkpoint file",
    "teacher": "train, import, list or verify a teacher",
    "leaderboard": "turn the record into tables and pages",
    "export": "write finished runs as small files for other checkouts",
    "import": "check such files and take them into the record",
    "ui": "MLflow's own pages on the record",
    "list": "methods, suites, data sets, models, attacks",
    "data": "fetch, import or verify a data set",
    "doctor": "device, versions, throughput, data, interrupted runs",
    "new-method": "write the file of a new method and its test",
}
METAVARS: dict[Any, str] = {float: "X", int: "N"}
EXAMPLE = "python -m bench run --method gacd --suite digits"


def main(argv: list[str] | None = None) -> None:
    """Entry point: exits with 0 (done), 1 (something failed) or 2 (wrong usage)."""
    signals.interrupt_on_stop_signals()
    if sys.stdout is None:
        sys.exit("error: standard output is closed")
    argv = sys.argv[1:] if argv is None else argv
    code: str | int | None
    try:
        code = dispatch(argv)
    except SystemExit as stop:  # `--help`, or processes that must end together
        code = stop.code
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except PluginError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"interrupted; {continue_hint('--force' in argv)} continues", file=sys.stderr)
        code = 130
    except OSError as error:
        code = errors.report_os_error(error)
    sys.exit(errors.flush_stdout() or code)


def dispatch(argv: list[str]) -> int:
    """Runs the verb of `argv`; raises BenchError."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        from bench import __version__

        print(__version__)
        return 0
    verb, rest = find_verb(argv)
    if verb is None:
        print(overview(argv[0]))
        return 0
    options, hyper = parse(verb, rest)
    return handler(verb)(options, hyper) if verb == "run" else handler(verb)(options)


def overview(group: str = "") -> str:
    """The help text of the whole program or of a verb that has actions."""
    if group:
        from bench.cli.options import VERBS

        actions = [name for name in VERBS if name.startswith(f"{group} ")]
        lines = [f"  {name:16}{(VERBS[name].__doc__ or '').splitlines()[0]}" for name in actions]
        return "\n".join([f"usage: python -m bench {group} ACTION [options]", "", *lines])
    lines = [f"  {verb:14}{text}" for verb, text in SUMMARY.items()]
    text = [
        "usage: python -m bench VERB [options]",
        "",
        "A benchmark of adversarial-robustness distillation.",
        "",
        *lines,
    ]
    return "\n".join(
        [
            *text,
            "",
            "`python -m bench VERB --help` lists a verb's options. To begin:",
            f"  {EXAMPLE}",
        ]
    )


def find_verb(argv: list[str]) -> tuple[str | None, list[str]]:
    """The verb with its action, and the words after; None for a verb with actions of which only the help is wanted."""
    from bench.cli.options import VERBS

    first = argv[0]
    if first not in SUMMARY:
        raise unknown_name("command", first, SUMMARY)
    if first in VERBS:
        return first, argv[1:]
    actions = [name.split()[1] for name in VERBS if name.startswith(f"{first} ")]
    if len(argv) < 2 or argv[1] in ("-h", "--help"):
        if len(argv) < 2:
            raise UsageError(f"`{first}` needs an action: {', '.join(actions)}")
        return None, []
    if argv[1] not in actions:
        raise unknown_name(f"{first} action", argv[1], actions)
    return f"{first} {argv[1]}", argv[2:]


def handler(verb: str) -> Callable[..., int]:
    """The function that carries a verb out, of `bench.cli.verbs` unless said here; torch is imported no earlier."""
    if verb == "export":
        from bench.records.export import export_runs

        return lambda given: export_runs(given.store, given.out, given.runs, given.suite)
    if verb == "import":
        from bench.records.import_ import import_records

        return lambda given: import_records(
            given.store,
            given.sources,
            given.data_root,
            given.device,
            given.verify,
            given.checkpoint,
        )
    if verb == "leaderboard":
        from bench.cli import board

        return board.leaderboard
    if verb == "ui":
        from bench.cli import ui

        return ui.ui
    if verb == "new-method":
        from bench.cli import skeleton

        return skeleton.new_method
    from bench.cli import verbs

    found: Callable[..., int] = getattr(verbs, verb.replace(" ", "_"))
    return found


def parse(verb: str, argv: list[str]) -> tuple[Any, dict[str, Any]]:
    """The verb's options, and for `run` the method's hyper-parameters that were given. Raises UsageError."""
    from bench.cli.options import VERBS

    form = VERBS[verb]
    names = method_names(argv) if verb in ("run", "tune") else []
    config = configuration(argv, names) if verb == "run" else None
    if config:
        names = [config.method]
    usual = config.hyper if config else {}
    extra = (
        flags(names[0], "--official" in argv, usual) if verb == "run" and len(names) == 1 else []
    )
    if extra or config:
        place = defaults(form, config.flags) if config else []
        form = dataclasses.make_dataclass(
            form.__name__, extra + place, bases=(form,), frozen=True, kw_only=True
        )
        form.__doc__ = VERBS[verb].__doc__
    check_flags(verb, form, argv, names)
    values = parsed(verb, form, argv)
    if verb == "run" and not values.method:
        raise UsageError("missing: --method, or --config")
    plain = VERBS[verb](
        **{field.name: getattr(values, field.name) for field in dataclasses.fields(VERBS[verb])}
    )
    return plain, {
        name: getattr(values, name) for name, _, _ in extra
    }  # plain: worker processes get it by pickle


def configuration(argv: list[str], names: list[str]) -> TunedConfig | None:
    """What `--config` points to, if it is there; its method must be the one that is named, if one is."""
    given = flag_values(argv, "--config")
    if not given:
        return None
    from pathlib import Path

    import methods
    from bench.protocol import tuned_config
    from methods import base

    found = tuned_config.read(Path(given[-1]))
    if names and names != [found.method]:
        raise UsageError(f"--method {','.join(names)}: {given[-1]} is for {found.method}")
    if found.method not in methods.names():
        raise unknown_name("method", found.method, methods.names())
    usual = {field.name: field.default for field in dataclasses.fields(methods.load(found.method))}
    for name, value in found.hyper.items():
        if name not in usual:
            raise unknown_name(f"hyper-parameter of {found.method} in {given[-1]}", name, usual)
        if not base.fits(value, usual[name]):
            raise UsageError(
                f"{given[-1]}: {name} = {value!r} should be a {type(usual[name]).__name__}"
            )
    return found


def defaults(form: type[Any], values: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Options of a verb with other defaults, as dataclass fields."""
    from typing import get_type_hints

    hints = get_type_hints(form, include_extras=True)
    return [(name, hints[name], dataclasses.field(default=value)) for name, value in values.items()]


def flag_values(argv: list[str], flag: str) -> list[str]:
    """What is given for a flag, as "--flag VALUE" or "--flag=VALUE"."""
    given = [value for word, value in itertools.pairwise([*argv, ""]) if word == flag]
    return given + [word.partition("=")[2] for word in argv if word.startswith(f"{flag}=")]


def method_names(argv: list[str]) -> list[str]:
    """The methods that `--method` names, checked; none if it is missing or `all`."""
    import methods

    given = flag_values(argv, "--method")
    if not given or given[-1] == "all":
        return []
    names = given[-1].split(",")
    for name in names:
        if name not in methods.names():
            raise unknown_name("method", name, [*methods.names(), "all"])
    return names


def flags(
    method: str, official: bool = False, given: dict[str, Any] | None = None
) -> list[tuple[str, Any, Any]]:
    """The method's hyper-parameters as dataclass fields, by default those `given` or, if `official`, the authors'."""
    from typing import Annotated, Literal, get_type_hints

    from tyro.conf import arg

    import methods
    from methods import base

    form = methods.load(method)
    usual = base.official(form) if official else given or {}
    hints = get_type_hints(form)
    fields = []
    for field in dataclasses.fields(form):
        choices = field.metadata["search"]["choices"]
        kind = Literal[choices] if choices else hints[field.name]
        about = arg(help=f"{method}: {field.metadata['help']}", metavar=METAVARS.get(kind))
        fields.append(
            (
                field.name,
                Annotated[kind, about],
                dataclasses.field(default=usual.get(field.name, field.default)),
            )
        )
    return fields


def check_flags(verb: str, form: type[Any], argv: list[str], names: list[str]) -> None:
    """Raises UsageError for a flag given twice, or for the first unknown one with the nearest right spelling."""
    known = ["--help", *(f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(form))]
    known += [
        f"--no-{field.name.replace('_', '-')}"
        for field in dataclasses.fields(form)
        if field.default in (True, False)
    ]
    given = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    for flag in given:
        if given.count(flag) > 1:
            raise UsageError(f"{flag} is given twice")
        if flag in known:
            continue
        near = difflib.get_close_matches(flag, known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"`python -m bench {verb} --help` lists them"
        if len(names) > 1 and any(
            flag == f"--{name.replace('_', '-')}" for m in names for name, _, _ in flags(m)
        ):
            hint = "a method's own flags need exactly one --method"
        raise UsageError(f"unknown flag {flag}: {hint}")


def parsed(verb: str, form: type[Any], argv: list[str]) -> Any:
    """The options by tyro; its boxed errors become a UsageError of one line."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(form, args=argv, prog=f"python -m bench {verb}")
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{one_line(said.getvalue())} (`python -m bench {verb} --help`)") from None


def one_line(box: str) -> str:
    """The cause in tyro's framed message."""
    lines = [re.sub(r"[│╭╮╰╯]", "", line).strip() for line in box.splitlines()]
    missing = [line for line in lines if re.match(r"--\w", line)]
    if any("Required options" in line for line in lines):
        return f"missing: {', '.join(missing)}"
    words = paragraph(lines[1:])
    return re.sub(r": no type matching .*? could be instantiated from ", ": cannot use ", words)


def paragraph(lines: list[str]) -> str:
    """The lines up to the first rule or empty one, joined."""
    end = next((i for i, line in enumerate(lines) if not line or line.startswith("─")), len(lines))
    return " ".join(lines[:end]).rstrip(".")
