"""What the contract says of a broken method: the first thing that is wrong, and no more."""

from __future__ import annotations

import inspect
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from unittest import SkipTest

import pytest
from packages import site

import methods
from bench.cli.commands import new_method
from methods import contract
from methods.base import Method
from methods.contract import Contract
from methods.device_check import take_steps

__all__ = ["site"]
MINE = new_method.fill_template("method.py.txt", {"class_name": "Mine"}).replace(
    "from torch import Tensor\n", "import numpy as np\nimport torch\nfrom torch import Tensor\n"
)
ATTACK = "return pgd(nets.student, batch.x, ce(batch.y), batch.budget)"
LOSS = 'return {"kl_adv": self.alpha * divergence.mean()}'
ALPHA = 'alpha: float = hp(1.0, "weight of the teacher", low=0.1, high=2.0, log=True)'
RULE = "loss must return a dict of scalar tensors"
CPU = (
    "pack_mine.py:LINE: tensors on cpu meet those on the networks' device: "
    "make them with device=batch.x.device"
)
# A line of the method, what replaces it, and the one line that the contract says then.
BROKEN = {
    "a tensor": (LOSS, "return divergence.mean()", f"{RULE}, not Tensor"),
    "nothing": (LOSS, "divergence.mean()", f"{RULE}, not NoneType"),
    "no terms": (LOSS, "return {}", f"{RULE}: no terms"),
    "a value an image": (
        LOSS,
        'return {"kl_adv": divergence}',
        f"{RULE}: kl_adv has the shape (2,)",
    ),
    "a number": (LOSS, 'return {"kl_adv": divergence.mean().item()}', f"{RULE}: kl_adv is float"),
    "a count": (
        LOSS,
        'return {"kl_adv": (divergence > 0).sum()}',
        f"{RULE}: kl_adv is torch.int64",
    ),
    "a slash": (LOSS, 'return {"kl/adv": divergence.mean()}', f"{RULE}: 'kl/adv' is no name"),
    "no name": (LOSS, "return {1: divergence.mean()}", f"{RULE}: 1 is no name"),
    "not finite": (
        LOSS,
        'return {"kl_adv": (-divergence - 1).log().mean()}',
        "kl_adv = nan, epoch 0, labels [0, 0]",
    ),
    "no images": (ATTACK, "ce(batch.y)", "attack must return images, not NoneType"),
    "one image": (ATTACK, "return batch.x[:1]", "attack changes the shape to (1, 3, 6, 6)"),
    "a large ball": (ATTACK, "return (batch.x + 0.2).clamp(0, 1)", "outside the ball"),
    "noise on the CPU": (ATTACK, "return (batch.x + torch.rand(6) / 99).clamp(0, 1)", CPU),
    "a mask on the CPU": (
        LOSS,
        'return {"kl_adv": (torch.ones(len(adv)) * divergence).mean()}',
        CPU,
    ),
    "a table on the CPU": (
        LOSS,
        'return {"kl_adv": (torch.ones(3)[batch.y].mean() * divergence).mean()}',
        CPU,
    ),
    "logits on the CPU": (
        LOSS,
        'return {"kl_adv": kl(torch.ones(len(adv), 1), nets.student(adv)).mean()}',
        CPU,
    ),
    "on the CPU after a value is read": (
        LOSS,
        'return {"kl_adv": (torch.zeros(int(adv.max() >= 0)) + divergence).mean()}',
        CPU,
    ),
    "a card by name": (
        LOSS,
        'return {"kl_adv": (batch.y.cuda() * divergence).mean()}',
        CPU.replace("on cpu", "on cuda"),
    ),
    "changed images": (LOSS, f"batch.x.mul_(0.5); {LOSS}", "x was changed"),
    "another mode": (LOSS, f"nets.student.eval(); {LOSS}", "a module was left in another mode"),
    "a frozen student": (
        LOSS,
        f"nets.student.requires_grad_(False); {LOSS}",
        "requires_grad was changed",
    ),
    "an unfrozen teacher": (
        LOSS,
        f"nets.teacher.requires_grad_(); {LOSS}",
        "teacher 'robust' was unfrozen",
    ),
    "no gradient": (
        LOSS,
        'return {"kl_adv": divergence.mean().detach()}',
        "no gradient reaches the loss (bf16: False)",
    ),
    "numbers of NumPy": (
        LOSS,
        'return {"kl_adv": np.random.rand() * divergence.mean()}',
        "{'kl_adv': ",
    ),
    "a loss that rises": (
        LOSS,
        'return {"kl_adv": (2 * divergence.detach() - divergence).mean()}',
        "in epoch 0: ",
    ),
    "no hp": (ALPHA, "alpha: float = 1.0", "alpha: declare it with hp(...)"),
    "no help": (
        ALPHA,
        'alpha: float = hp(1.0, "", low=0.1, high=2.0)',
        "alpha: no help text",
    ),
    "no dataclass": ("@dataclass(frozen=True)", "", "Mine lacks @dataclass(frozen=True)"),
}


def broken_method(folder: Path, line: str, replacement: str) -> tuple[Method, int]:
    """Write and import the method with a line replaced; return a case and the line's number."""
    start, end = MINE.split(line)
    (folder / "pack_mine.py").write_text(f"{start}{replacement}{end}")
    case: Method = import_module("pack_mine").Mine()
    return case, start.count("\n") + 1


def failures(case: Method) -> list[str]:
    """Return what the tests of the contract say that `case` fails."""
    messages = []
    for name, test in vars(Contract).items():
        if not name.startswith("test_"):
            continue
        takes_classes = "classes" in inspect.signature(test).parameters
        for options in ({"classes": 3}, {"classes": 10}) if takes_classes else ({},):
            with suppress(SkipTest):
                try:
                    test(Contract(), case, **options)
                except AssertionError as error:
                    messages.append(str(error))
    return messages


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_costs_one_line(name: str, site: Path) -> None:
    *change, message = BROKEN[name]
    case, number = broken_method(site, *change)
    (line,) = failures(case)
    assert line.startswith(message.replace("LINE", str(number)))
    assert "\n" not in line


def test_a_term_on_the_cpu_is_that_of_the_loss(site: Path) -> None:
    replacement = 'return {"kl_adv": divergence.mean(), "off": torch.tensor(0.0)}'
    case, number = broken_method(site, LOSS, replacement)
    assert failures(case) == [CPU.replace("LINE", str(number - 2))]


@pytest.mark.parametrize(
    "replacement",
    [
        'return {"kl_adv": torch.tensor(0.5) * divergence.mean()}',
        'return {"kl_adv": (torch.ones(len(adv)).to(adv.device) * divergence).mean()}',
        'return {"kl_adv": (torch.ones(len(adv), device=adv.device) * divergence).mean()}',
        'return {"kl_adv": divergence.mean() * (1 + (divergence.detach().mean().item() > 99))}',
        'return {"kl_adv": divergence[batch.y >= 0].mean()}',
        'return {"kl_adv": divergence[torch.arange(1)].mean()}',
        'divergence[torch.tensor([0])] = torch.tensor(0.0); return {"kl_adv": divergence.mean()}',
        'return {"kl_adv": divergence.mean() * float(adv.cpu().numpy().max() >= 0)}',
    ],
)
def test_what_works_on_a_device_passes(replacement: str, site: Path) -> None:
    case, _ = broken_method(site, LOSS, replacement)
    assert failures(case) == []


@pytest.mark.slow
def test_what_follows_is_skipped(site: Path) -> None:
    broken_method(site, *BROKEN["a tensor"][:2])
    tests = (
        "from methods.contract import Contract\nfrom pack_mine import Mine\n"
        "class TestMine(Contract):\n    cases = (Mine(), Mine(alpha=0.5))\n"
    )
    (site / "test_mine.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    text = subprocess.run(command, cwd=site, capture_output=True, text=True).stdout
    assert text.count(f"E       AssertionError: {RULE}, not Tensor") == 2
    assert "2 failed, 22 passed, 22 skipped" in text


@pytest.mark.parametrize("name", methods.builtin())
def test_steps_are_followed_to_their_end(name: str) -> None:
    """Without values too: no fault hides behind what cannot be followed."""
    case = methods.load(name)()
    take_steps(case, contract.networks(case), contract.every_epoch(contract.images([0, 1])))
