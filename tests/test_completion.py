"""Shell completion, in the shells; and files of the user that hide packages of this program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bench
import methods
from bench.cli import commands

# Of the packages, which may be installed, and of the clone.
ROOT = Path(bench.__file__).parents[1]
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# Calls the function that bash would call for the words, as if TAB was pressed behind the last.
BASH = """
source "$1"; shift
name=$(complete -p robust-distill-bench | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
"$name" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
CASES = [
    ("teac", {"teacher"}),
    ("run --meth", {"--method"}),
    ("run --method gac", {"gacd"}),
    ("run --suite digits --student resnet20", {"resnet20-w16"}),
    ("run --suite cifar-m", {"cifar-mini", "cifar-mini-halves"}),
    ("data fetch cifar1", {"cifar10", "cifar10-0-4", "cifar10-5-9", "cifar100"}),
    ("teacher train --role ", {"natural", "robust"}),
    ("evaluate --norm ", {"L2", "Linf"}),
    ("completion ", {"bash", "zsh", "fish"}),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the file of the script for each shell, written by the console script."""
    folder = tmp_path_factory.mktemp("completion")
    scripts = {}
    for shell in ("bash", "zsh", "fish"):
        scripts[shell] = folder / shell
        scripts[shell].write_text(run_script(folder, "completion", shell).stdout)
    return scripts


def run_script(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the console script of pyproject.toml in a folder."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    module, function = project["scripts"]["robust-distill-bench"].split(":")
    script = folder.parent / f"{folder.name}-bin" / "robust-distill-bench"
    script.parent.mkdir(exist_ok=True)
    # As an installer writes it: Python looks for modules beside it, not in the working folder.
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return run_python(folder, str(script), *words)


def run_python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def complete(shell: str, script: Path, words: str) -> set[str]:
    """Return what a shell offers for the last word."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    line = f"robust-distill-bench {words}"
    if shell == "bash":
        command = ["bash", "--norc", "-c", BASH, "bash", str(script), *line.split(" ")]
    else:
        command = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return {offer.partition("\t")[0] for offer in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(("words", "expected"), CASES)
def test_a_shell_completes(
    shell: str, words: str, expected: set[str], scripts: dict[str, Path]
) -> None:
    assert complete(shell, scripts[shell], words) == expected


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_all_commands_and_methods_are_offered(shell: str, scripts: dict[str, Path]) -> None:
    assert complete(shell, scripts[shell], "") >= set(commands.COMMANDS)
    assert complete(shell, scripts[shell], "run --method ") >= {*methods.names(), "all"}


def test_zsh_takes_its_script(scripts: dict[str, Path]) -> None:
    if not shutil.which("zsh"):
        pytest.skip("no zsh")
    code = f'autoload -U compinit; compinit -D; eval "$(< {scripts["zsh"]})"; '
    code += "print $_comps[robust-distill-bench]"
    done = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "_shtab_robust_distill_bench\n"


SHADOWS = ["methods.py", "attacks.py", "leaderboards.py", "methods/__init__.py",
           "leaderboards/__init__.py"]  # fmt: skip


@pytest.mark.parametrize("file", SHADOWS)
def test_a_file_that_hides_a_package_is_named(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit('imported')\n")
    done = run_python(tmp_path, "-m", "bench", "--version")
    name = file.removesuffix("/__init__.py")
    package = name.removesuffix(".py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: ./{name} shadows the package {package} of robust-")
    assert done.stderr.count("\n") == 1
    done = run_python(tmp_path, "-P", "-m", "bench", "--version")
    assert (done.returncode, done.stdout) == (0, f"{bench.__version__}\n")


def test_the_console_script_works_beside_such_files(tmp_path: Path) -> None:
    for name in ("bench", "methods", "attacks", "leaderboards"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
        (tmp_path / name).mkdir()
    done = run_script(tmp_path, "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "gacd" in done.stdout
