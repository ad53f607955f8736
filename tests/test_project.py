"""Test that the files around the code agree: versions, Pythons, tools, workflows, typing marks."""

from __future__ import annotations

import configparser
import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench
from bench import cli

ROOT = Path(__file__).parents[1]
GITHUB_FILES = sorted((ROOT / ".github").rglob("*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"


def read_project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_pins() -> dict[str, str]:
    """Return the versions of constraints.txt by package."""
    lines = (ROOT / "constraints.txt").read_text().split()
    return dict(line.split("==") for line in lines)


def read_python_rows() -> dict[str, str]:
    """Return what the release page says of each Python, by version."""
    page = (ROOT / "docs" / "contributing" / "release.md").read_text()
    return dict(re.findall(r"^\| (3\.\d+)[.\d]* \|.*\| (\w+) \|$", page, re.MULTILINE))


def workflow_commands(path: Path) -> list[str]:
    """Return the lines that the steps of a workflow run."""
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    return [line for step in steps for line in step.get("run", "").splitlines()]


def test_version_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot read `bench.__version__` repeats it."""
    project = read_project()
    assert "version" in project["dynamic"]
    assert "version" not in project
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == bench.__version__
    assert cli.dispatch(["--version"]) == 0
    assert capsys.readouterr().out.strip() == bench.__version__


def test_changelog_begins_with_the_version() -> None:
    """A version under development stands under the heading of its release."""
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    release, _, dev = bench.__version__.partition(".dev")
    if dev:
        assert headings[0] == f"{release} (unreleased)"
    else:
        assert headings[0] == release


def test_pythons_of_metadata_are_those_that_were_tried() -> None:
    project = read_project()
    prefix = "Programming Language :: Python :: "
    names = [name.removeprefix(prefix) for name in project["classifiers"] if prefix in name]
    versions = [name for name in names if re.fullmatch(r"3\.\d+", name)]
    minors = [int(version.removeprefix("3.")) for version in versions]
    assert project["requires-python"] == f">=3.{minors[0]},<3.{minors[-1] + 1}"
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert read_python_rows() == dict.fromkeys(versions, "yes")


def test_hooks_use_the_pinned_tools() -> None:
    pins = read_pins()
    (repository,) = yaml.safe_load(HOOKS.read_text())["repos"]
    tools = [
        tool for hook in repository["hooks"] for tool in hook.get("additional_dependencies", ())
    ]
    assert tools
    for tool in tools:
        name, version = tool.split("==")
        assert pins[name] == version, tool


@pytest.mark.parametrize("path", GITHUB_FILES, ids=lambda path: path.name)
def test_github_reads_the_file(path: Path) -> None:
    """The schemas are checked by `tox -e lint`."""
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_a_workflow_runs_the_tests() -> None:
    assert "bash .ci/run" in workflow_commands(ROOT / ".github" / "workflows" / "ci.yml")
    assert (ROOT / ".ci" / "run").is_file()


def test_pages_build_the_leaderboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of the workflow, as it stands there, from the root of the repository."""
    commands = workflow_commands(ROOT / ".github" / "workflows" / "pages.yml")
    (command,) = [line for line in commands if line.startswith("python -m bench ")]
    words = command.removeprefix("python -m bench ").split()
    position = words.index("--out") + 1
    assert words[position] == "site/leaderboard"
    words[position] = str(tmp_path / words[position])
    monkeypatch.chdir(ROOT)
    assert cli.dispatch(words) == 0
    capsys.readouterr()
    assert (tmp_path / "site" / "leaderboard" / "index.html").is_file()


def test_workflows_use_environments_that_exist() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    workflows = [path for path in GITHUB_FILES if path.parent.name == "workflows"]
    commands = [line for path in workflows for line in workflow_commands(path)]
    names = [line.removeprefix("tox -e ") for line in commands if line.startswith("tox -e ")]
    assert names
    for name in names:
        assert f"testenv:{name}" in tox, name


def test_an_audit_that_cannot_ask_does_not_pass() -> None:
    """Only so does pip-audit fail for a package that its service has no answer about."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    words = tox["testenv:audit"]["commands"].split()
    assert "--strict" in words
    assert words[words.index("--requirement") + 1] == "constraints.txt"


@pytest.mark.parametrize("name", ["bench", "methods", "attacks", "leaderboards"])
def test_package_is_marked_as_typed(name: str) -> None:
    (folder,) = importlib.import_module(name).__path__
    assert (Path(folder) / "py.typed").is_file()


def test_smaller_install_is_the_one_that_is_tried() -> None:
    page = (ROOT / "docs" / "guides" / "install.md").read_text()
    (command,) = re.findall(r"pip uninstall -y .+", page)
    assert command in (ROOT / "tox.ini").read_text()
