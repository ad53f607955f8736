"""The verb `new-method`: a method that keeps the contract, and its test, to begin with. No torch here."""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from string import Template

import methods
from bench.cli.options import NewMethod
from bench.system.errors import BenchError, UsageError

METHOD = Template('''"""What it is called.

Paper: authors, title, venue, year. Say what is from the paper, what from the authors' code, what is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from methods.base import Batch, Method, Nets, hp, kl
from methods.inner import ce, pgd


@dataclass(frozen=True)
class $form(Method):
    """The formula, in one line: alpha KL(T(x) || S(x~)), x~ = argmax CE(S(x~), y)."""

    alpha: float = hp(1.0, "weight of the teacher", low=0.1, high=2.0, log=True)

    def attack(self, nets: Nets, batch: Batch) -> Tensor:
        return pgd(nets.student, batch.x, ce(batch.y), batch.budget)

    def loss(self, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        return {"kl_adv": self.alpha * kl(nets.teacher_logits(batch), nets.student(adv)).mean()}


METHOD = $form
''')
TEST = Template('''"""The contract that every method keeps; add a check of the loss's value."""

from __future__ import annotations

from methods.contract import Contract

from $name import $form


class Test$form(Contract):
    cases = ($form(), $form(alpha=0.5))
''')
INSIDE = Template("""It is a built-in method now, and the contract's tests find it:
  pytest tests/test_methods.py -k $form
  python -m bench run --method $name --suite digits""")
OUTSIDE = Template("""The test passes as it is; keep it so:
  pytest $test
`run --method $name` finds the method once its file is in methods/ of a clone, or in an installed package with
  [project.entry-points."bench.methods"]
  $name = "$name:$form"
in its pyproject.toml; examples/plugin is such a package.""")
IMPORTED = {"Batch", "Method", "Nets", "Tensor"}  # by the file itself


def new_method(given: NewMethod) -> int:
    """Writes the file and its test, and says what comes next."""
    form = "".join(word.capitalize() for word in given.name.split("_"))
    file, test = given.out / f"{given.name}.py", given.out / f"test_{given.name}.py"
    inside = (given.out / "contract.py").exists()  # methods/ itself
    texts = {file: METHOD} if inside else {file: METHOD, test: TEST}
    check(given.name, form, [*texts])
    words = {"name": given.name, "form": form, "test": str(test)}
    for path, text in texts.items():
        write(path, text.substitute(words))
        print(f"wrote {path}")
    print((INSIDE if inside else OUTSIDE).substitute(words))
    return 0


def check(name: str, form: str, paths: list[Path]) -> None:
    """Raises UsageError for a name that is none, or that something else has."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name, re.ASCII) or keyword.iskeyword(name):
        raise UsageError(
            f"{name!r} is no name for a method: a letter, then letters, digits and _, all lower-case"
        )
    for path in paths:
        if path.exists():
            raise UsageError(
                f"{str(path)!r} exists: choose another name, or another folder with --out"
            )
    if name in methods.names():
        raise UsageError(f"there is a method {name!r}: choose another name")
    if name == "all" or form in IMPORTED or find_spec(f"methods.{name}") or find_spec(name):
        raise UsageError(
            f"the name {name!r} is taken, by a module or the command line: choose another"
        )


def write(path: Path, text: str) -> None:
    """Writes a new file. Raises BenchError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(text)
    except OSError as error:
        raise BenchError(f"cannot write {str(path)!r}: {error.strerror}") from error
