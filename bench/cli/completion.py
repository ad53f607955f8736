"""Print a script that completes commands, flags and names in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from tyro.conf import Positional

import methods
from bench.cli import commands
from bench.cli.parsing import Command
from bench.protocol.options import list_options, option

# The console script: a shell completes by the first word, which of `python -m bench` is Python's.
PROGRAM = "robust-distill-bench"


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Print a script that completes commands, flags and names in a shell.

    bash, in ~/.bashrc: source <(robust-distill-bench completion bash).
    zsh, after compinit in ~/.zshrc: eval "$(robust-distill-bench completion zsh)".
    fish, in config.fish: robust-distill-bench completion fish | source.
    The script is for robust-distill-bench; shells have one completion for python, whatever it runs.
    """

    shell: Positional[Annotated[Literal["bash", "zsh", "fish"], option()]]


def print_script(options: CompletionOptions) -> None:
    """Print the script of a shell."""
    import shtab

    print(shtab.complete(build_parser(), options.shell))


def build_parser() -> argparse.ArgumentParser:
    """Return a parser of all commands, which is never used to parse: shtab reads it."""
    parser = argparse.ArgumentParser(PROGRAM)
    parser.add_argument("--version", action="store_true", help="print the version")
    subparsers = parser.add_subparsers()
    for name in commands.COMMANDS:
        module = commands.load_module(name)
        if isinstance(module.COMMAND, Command):
            add_command(subparsers, name, module.COMMAND)
            continue
        summary = module.__doc__.partition("\n")[0]
        actions = subparsers.add_parser(name, help=summary).add_subparsers()
        for action, command in module.COMMAND.items():
            add_command(actions, action, command, name)
    return parser


def add_command(subparsers: Any, name: str, command: Command, group: str = "") -> None:
    """Add a command, or an action of the command `group`, with its flags and positional words."""
    import shtab

    summary = (command.options.__doc__ or "").partition("\n")[0]
    parser, names = subparsers.add_parser(name, help=summary), known_names(group)
    for entry in list_options(command.options):
        settings = {"help": entry.described("help")}
        if isinstance(entry.default, bool):
            settings["action"] = "store_true"
        elif entry.name in names or get_origin(entry.kind) is Literal:
            settings["choices"] = sorted(names.get(entry.name, get_args(entry.kind)))
        words = [entry.name] if entry.is_positional else entry.flags
        argument = parser.add_argument(*words, **settings)
        if "Path" in str(entry.kind):
            argument.complete = shtab.FILE


def known_names(group: str) -> dict[str, Iterable[str]]:
    """Return the names that an option takes, by its field; a list with commas has the first one."""
    from attacks import catalog
    from bench import datasets, models
    from bench.protocol import suites
    from bench.teachers.releases import RELEASES

    positional = {
        "data": datasets.REGISTRY.names(),
        "teacher": [release.name for release in RELEASES],
    }
    return {
        "method": [*methods.names(), "all"],
        "suite": suites.REGISTRY.names(),
        "dataset": datasets.REGISTRY.names(),
        "student": models.examples(),
        "arch": models.examples(),
        "surrogate_arch": models.examples(),
        "attacks": [*catalog.ATTACKS, "corruptions"],
        "teacher": ["robust", "natural"],
        **({"name": positional[group]} if group in positional else {}),
    }


COMMAND = Command(CompletionOptions, print_script)
