"""Write the file of a new method and its test."""

import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated

from tyro.conf import Positional

import methods
from bench.cli.parsing import Command
from bench.protocol.options import option
from bench.system.errors import BenchError, UsageError

TEMPLATES = Path(__file__).parent / "templates"
IMPORTED = {"Batch", "Method", "Nets", "Tensor"}  # names that the file itself imports


@dataclass(frozen=True, kw_only=True)
class NewMethodOptions:
    """Write the file of a new method and its test, which passes, to begin with."""

    name: Positional[Annotated[str, option("NAME", "what `--method` shall call it")]]
    out: Annotated[Path, option("DIR", "methods/ of a clone needs no test")] = Path(".")


def write_new_method(options: NewMethodOptions) -> None:
    """Write the file and its test, and print what comes next."""
    class_name = "".join(word.capitalize() for word in options.name.split("_"))
    test = options.out / f"test_{options.name}.py"
    templates = {options.out / f"{options.name}.py": "method.py.txt", test: "test.py.txt"}
    advice = "outside.txt"
    # The tests of the contract find the methods of methods/ themselves.
    if (options.out / "contract.py").exists():
        del templates[test]
        advice = "inside.txt"
    check_name(options.name, class_name, templates)
    values = {"name": options.name, "class_name": class_name, "test": str(test)}
    for path, template in templates.items():
        write_file(path, fill_template(template, values))
        print(f"wrote {path}")
    print(fill_template(advice, values), end="")


def fill_template(name: str, values: dict[str, str]) -> str:
    """Return the text of a template with its placeholders replaced."""
    return Template((TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)


def check_name(name: str, class_name: str, paths: Iterable[Path]) -> None:
    """Raise UsageError for a name that Python does not allow, or that is in use."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name, re.ASCII) or keyword.iskeyword(name):
        rule = "a letter, then letters, digits and _, all lower-case"
        raise UsageError(f"{name!r} is no name for a method: {rule}")
    for path in paths:
        if path.exists():
            advice = "choose another name, or another folder with --out"
            raise UsageError(f"{str(path)!r} exists: {advice}")
    if name in methods.names():
        raise UsageError(f"there is a method {name!r}: choose another name")
    taken = name == "all" or class_name in IMPORTED
    if taken or find_spec(name) or find_spec(f"methods.{name}"):
        user = "a module or the command line"
        raise UsageError(f"the name {name!r} is taken, by {user}: choose another")


def write_file(path: Path, text: str) -> None:
    """Write a new file. Raises BenchError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A file that appeared in the meantime is not overwritten.
        with path.open("x") as file:
            file.write(text)
    except OSError as error:
        raise BenchError(f"cannot write {str(path)!r}: {error.strerror}") from error


COMMAND = Command(NewMethodOptions, write_new_method)
