"""What docs/reference/ says of options and suites: command-line.md and configuration.md.

`python -m bench.cli.generated_files` writes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from bench.cli import commands
from bench.cli.parsing import Command
from bench.protocol import suites, tuned_config
from bench.protocol.options import Option, list_options
from bench.protocol.suites import Suite, Teacher
from bench.system.tables import readable_number
from leaderboards.schema.spec import Training

INTROS = Path(__file__).with_name("page_intros")
OPTIONS_HEAD = "| Option | Value | Default | Meaning |\n| --- | --- | --- | --- |\n"


def render_command_line() -> str:
    """Return command-line.md: a section for each command and each action."""
    parts = [read_intro("command-line.md")]
    for name in commands.COMMANDS:
        module = commands.load_module(name)
        parts.append(f"\n## {name}\n\n")
        if isinstance(module.COMMAND, Command):
            parts.append(command_text(name, module.COMMAND))
            continue
        parts.append(f"{cleandoc(module.__doc__)}\n")
        for action, command in module.COMMAND.items():
            title = f"{name} {action}"
            parts.append(f"\n### {title}\n\n{command_text(title, command)}")
    return "".join(parts)


def command_text(name: str, command: Command) -> str:
    """Return what a command is for, its usage and a table of its options."""
    # Positional ones first.
    options = sorted(list_options(command.options), key=lambda option: not option.is_positional)
    words = [option.described("metavar") for option in options if option.is_positional]
    usage = ["python -m bench", name, *words]
    if len(words) < len(options):
        usage.append("[options]")
    text = f"{cleandoc(command.options.__doc__ or '')}\n\n```text\n{' '.join(usage)}\n```\n"
    rows = [option_row(option) for option in options]
    return "".join([text, f"\n{OPTIONS_HEAD}" if rows else "", *rows])


def option_row(option: Option) -> str:
    """Return an option's line of the table."""
    value = option.described("metavar")
    if get_origin(option.kind) is Literal:
        value = value or "|".join(map(str, get_args(option.kind)))
    elif option.kind is not bool:
        value = value or "X ..."
    default = option.described("help_behavior_hint").strip("()").removeprefix("default: ")
    values = ", ".join(f"`{choice}`" for choice in value.split("|") if choice)
    name = option.described("metavar") if option.is_positional else option.flags[0]
    names = ", ".join(f"`{spelling}`" for spelling in (name, *option.described("aliases")))
    default = default or describe_default(option.default)
    return table_row([names, values, default, option.described("help")])


def describe_default(default: Any) -> str:
    """Return an option's default as text: "required" without one, "" for what is empty or off."""
    if default is dataclasses.MISSING:
        return "required"
    is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
    return f"`{default}`" if default or is_number else ""


def render_configuration() -> str:
    """Return configuration.md: the suites' numbers, and the keys of a tuned configuration."""
    names = list(suites.SUITES)
    head = table_row(["Field", *names]) + "| --- " * (len(names) + 1) + "|\n"
    rows = []
    columns = [suite_values(suite) for suite in suites.SUITES.values()]
    for key in columns[0]:
        rows.append(table_row([f"`{key}`", *(column[key] for column in columns)]))
    keys = []
    for field in dataclasses.fields(tuned_config.TunedConfig):
        keys.append(table_row([f"`{field.name}`", describe_key(field.name)]))
    text = read_intro("configuration.md")
    return text.replace("SUITE_TABLE\n", head + "".join(rows)).replace("KEYS\n", "".join(keys))


def suite_values(suite: Suite) -> dict[str, str]:
    """Return a suite's fields as text; of a teacher's training what differs from the students'."""
    values = {}
    for name, value in vars(suite).items():
        if name == "teachers":
            for role, teacher in suite.teachers.items():
                values[f"teachers.{role}"] = describe_teacher(teacher, suite.training)
        elif name == "training":
            for key, setting in vars(suite.training).items():
                values[f"training.{key}"] = describe_value(setting)
        elif name == "rows":
            values[name] = str(len(value) or "none")
        elif name not in ("name", "about"):
            values[name] = describe_value(value)
    return values


def describe_teacher(teacher: Teacher, training: Training) -> str:
    """Return a teacher's network and method, and how its training differs from `training`."""
    parts = [f"{teacher.arch} by {teacher.method}"]
    for key, setting in vars(teacher.training).items():
        if setting != getattr(training, key):
            parts.append(f"{key} {describe_value(setting)}")
    if teacher.limit_aa:
        parts.append(f"limit_aa {teacher.limit_aa}")
    return ", ".join(parts)


def describe_value(value: Any) -> str:
    """Return a field's value as text."""
    if value is None:
        return "all"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return readable_number(value) if isinstance(value, float) else str(value)


def describe_key(name: str) -> str:
    """Return what a key of a tuned configuration may hold."""
    if name in tuned_config.NAMES:
        return "text; the option of `run` of this name" + (", with its version" * (name == "suite"))
    if name == "training":
        limits = [f"`{key}` up to {limit:g}" for key, limit in tuned_config.TRAINING.items()]
        return f"table; {', '.join(limits)}"
    if name == "hyper":
        return "table; the method's hyper-parameters"
    return "table, for people, but for `trials`: a tuned row is named after it"


def read_intro(name: str) -> str:
    """Return the text of a page that is written by hand."""
    return (INTROS / name).read_text(encoding="utf-8")


def table_row(columns: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(columns)} |\n"
