"""What docs/reference/ says of options and suites: command-line.md and configuration.md.

`python -m bench.cli.generated_files` writes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from bench.cli import commands
from bench.cli.parsing import Command, flag_name
from bench.protocol import suites, tuned_config
from bench.protocol.suites import Suite, Teacher
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
    hints = get_type_hints(command.options, include_extras=True)
    fields = dataclasses.fields(command.options)
    words = [field for field in fields if is_positional(hints[field.name])]
    flags = [field for field in fields if field not in words]
    usage = ["python -m bench", name]
    usage += [option_name(field, hints[field.name]) for field in words]
    if flags:
        usage.append("[options]")
    text = f"{cleandoc(command.options.__doc__ or '')}\n\n```text\n{' '.join(usage)}\n```\n"
    rows = [option_row(field, hints[field.name]) for field in (*words, *flags)]
    return "".join([text, f"\n{OPTIONS_HEAD}" if rows else "", *rows])


def option_row(field: dataclasses.Field[Any], hint: Any) -> str:
    """Return an option's line of the table."""
    kind = get_args(hint)[0]
    value = described(hint, "metavar")
    if get_origin(kind) is Literal:
        value = value or "|".join(map(str, get_args(kind)))
    elif kind is not bool:
        value = value or "X ..."
    default = described(hint, "help_behavior_hint").strip("()").removeprefix("default: ")
    values = ", ".join(f"`{choice}`" for choice in value.split("|") if choice)
    names = ", ".join(f"`{name}`" for name in (option_name(field, hint), *aliases(hint)))
    return table_row([names, values, default or describe_default(field), described(hint, "help")])


def described(hint: Any, attribute: str) -> str:
    """Return what `option` says of an option, the last word where it says it twice; else ""."""
    texts = [getattr(entry, attribute, None) for entry in hint.__metadata__]
    return next((text for text in reversed(texts) if text), "")


def describe_default(field: dataclasses.Field[Any]) -> str:
    """Return an option's default as text: "required" without one, "" for what is empty or off."""
    if field.default is dataclasses.MISSING:
        return "required"
    is_number = isinstance(field.default, (int, float)) and not isinstance(field.default, bool)
    return f"`{field.default}`" if field.default or is_number else ""


def option_name(field: dataclasses.Field[Any], hint: Any) -> str:
    """Return a flag, or the name that the usage shows for a plain word."""
    if is_positional(hint):
        return described(hint, "metavar")
    return flag_name(f"--{field.name}")


def aliases(hint: Any) -> list[str]:
    """Return the short spellings of a flag."""
    names: list[str] = []
    for entry in hint.__metadata__:
        names += getattr(entry, "aliases", None) or ()
    return names


def is_positional(hint: Any) -> bool:
    """Return whether an option is a plain word."""
    return Positional in hint.__metadata__


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
                values[f"training.{key}"] = describe_value(key, setting)
        elif name not in ("name", "about"):
            values[name] = describe_value(name, value)
    return values


def describe_teacher(teacher: Teacher, training: Training) -> str:
    """Return a teacher's network and method, and how its training differs from `training`."""
    parts = [f"{teacher.arch} by {teacher.method}"]
    for key, setting in vars(teacher.training).items():
        if setting != getattr(training, key):
            parts.append(f"{key} {describe_value(key, setting)}")
    if teacher.limit_aa:
        parts.append(f"limit_aa {teacher.limit_aa}")
    return ", ".join(parts)


def describe_value(name: str, value: Any) -> str:
    """Return a field's value as text."""
    if value is None:
        return "all"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    pixels = 255 * value if name in ("eps", "inner_step") else 0.0
    # Half units are as fine as the papers' steps.
    return f"{pixels:g}/255" if pixels and (2 * pixels).is_integer() else str(value)


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
