"""Every command that README and guides show is parsed, and run on tiny sizes.

The tables say how a command is made small and what stands for its placeholders. A command that they
do not cover fails, here or in the program: none is skipped.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from hub_server import Hub, connect, serve_hub
from mlflow import MlflowClient
from test_ui import free_port

from attacks import ATTACKS
from bench import cli
from bench.cli import commands
from bench.cli.parsing import Command, parse_options
from bench.datasets.augmentation import to_float
from bench.datasets.loading import load_data
from bench.protocol import suites, tuned_config
from bench.protocol.tuned_config import TunedConfig
from bench.teachers import cards, releases

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "docs/index.md", "docs/getting-started.md"),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs" / "guides").glob("*.md"))),
)
# It shows other programs alone.
PAGE_OF_PIP = "docs/guides/install.md"
NETWORK = "resnet8-w16"
IMAGES = {"--limit-train": "128", "--limit-test": "8"}
RUN = {"--suite": "digits", "--dataset": "digits", "--student": "resnet8-w4", "--epochs": "1"}
RUN |= IMAGES | {"--workers": "1", "--seeds": "0"}
EVALUATE = {"--arch": NETWORK, "--dataset": "digits", "--checkpoint": "net.pt", "--limit-test": "8"}
# Options that make a command small, in place of those that the page shows.
SMALL = {
    "run": RUN,
    # Two trials of one epoch reach no accuracy that a search would accept.
    "tune": RUN | {"--trials": "2", "--min-clean": "0"},
    "evaluate": EVALUATE,
    "teacher train": {"--suite": "digits"} | IMAGES,
    "teacher import": {"--arch": NETWORK, "--dataset": "digits", "--limit-test": "100"},
    "teacher verify": {"--limit-test": "100", "--limit-train": "100"},
    "model": {"--store": "one-row"},
    "analyze": {"--store": "one-row", "--workers": "1"},
}
# Values of options that a page shows and a tiny command cannot have, where it has the option.
VALUES = {
    ("run", "--method"): {"all": "natural,pgd_at"},
    ("run", "--ray"): {"auto": "local"},
    ("ui", "--host"): {"NAME": "127.0.0.1"},
    ("run", "--config"): dict.fromkeys(["FILE", "runs/tuned/FILE"], "tuned.toml"),
    ("evaluate", "--surrogate"): dict.fromkeys(["teacher.pt"], "net.pt"),
    ("evaluate", "--surrogate-arch"): dict.fromkeys(["resnet18"], NETWORK),
    ("analyze", "--suite"): dict.fromkeys(["digits-halves", "cifar-mini-halves"], "digits"),
    ("tune", "--method"): {"all": "pgd_at"},
    ("tune", "--storage"): {"postgresql://USER@HOST/tuning": "sqlite:///tuning.db"},
    ("import", "--checkpoint"): {"best.pt": "net.pt"},
}
# Plain words.
WORDS = {
    "data fetch": {"cifar10": "digits"},
    "data verify": dict.fromkeys(("cifar10", "folder:pets@64"), "digits"),
    "new-method": {"NAME": "mine"},
    "export": {"RUN": "$RUN"},
    "import": {"back/records": "leaderboards/results"},
    "show": {"RUN": "$RUN"},
    "model": {"RUN": "$RUN"},
    "analyze": {"RUN": "$RUN"},
    "list": {"NAME": "gacd"},
    "teacher import": dict.fromkeys(("FILE", "best.pt"), "net.pt")
    | {release.name: "imported" for release in releases.RELEASES},
}
# Why it is parsed alone.
ONLY_PARSED = {
    "data import": "it copies the official files, 170 MB",
    **dict.fromkeys(
        ("slices pack", "slices run", "slices join"), "they need each other: test_slices.py"
    ),
}
ENVIRONMENT = {"MLFLOW_TRACKING_URI": {"http://HOST:5000": "sqlite:///server.db"}}
TWO_PROCESSES = ("--nproc-per-node", "2")
# Suites that are planned and not run: of real images, or of many rows.
ONLY_PLANNED = (
    *("cifar", "cifar-mini", "cifar-fast", "cifar-sprint", "stl"),
    *("gacd-ablation", "gacd-ablation-cifar", "cifar-mini-halves"),
)


@dataclass(frozen=True)
class PageCommand:
    """A command of a page: what comes before the program, and the words after it."""

    page: str
    text: str
    before: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """The command, with its action if it has some."""
        command = commands.load_module(self.words[0]).COMMAND
        return self.words[0] if isinstance(command, Command) else " ".join(self.words[:2])

    @property
    def arguments(self) -> list[str]:
        """The words after the name."""
        return list(self.words[len(self.name.split()) :])

    @property
    def needs_hub(self) -> bool:
        return "--hub" in self.words or any(word.startswith("hf:") for word in self.words)

    @property
    def is_distributed(self) -> bool:
        return any(word.endswith("torchrun") for word in self.before)


def find_commands(page: str, text: str) -> Iterator[PageCommand]:
    """Yield the commands in the code of a page: lines of blocks, and spans in the text."""
    for code in code_lines(text):
        if not re.search(r"-m bench\b(?!\.)|robust-distill-bench ", code):
            continue
        # What a shell substitutes, "$(...)" or <(...), is a command as well.
        code = re.sub(r'"?[$<]\((.*?)\)"?', r"; \1 ;", code.removeprefix("$ "))
        words = shlex.split(code, comments=True)
        for part in split_words(words):
            start = program_end(part)
            # Of a program's name alone it is said that there is one.
            if 0 < start < len(part):
                before, after = part[: start - 1], part[start:]
                yield PageCommand(page, " ".join(part), tuple(before), tuple(after))


def code_lines(text: str) -> Iterator[str]:
    """Yield the lines of code blocks, joined where a backslash ends them, and the spans."""
    fenced = False
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
            continue
        spans = re.findall(r"`([^`]+)`", line)
        if fenced or (line.startswith("    ") and not spans):
            yield line.strip()
        else:
            yield from spans


def split_words(words: list[str]) -> Iterator[list[str]]:
    """Yield the single commands of a line of the shell."""
    part: list[str] = []
    for word in [*words, ";"]:
        if word in ("&&", "||", "|", ";"):
            yield part
            part = []
        else:
            part.append(word)


def program_end(words: list[str]) -> int:
    """Return the position after the name of the program, 0 for another program."""
    for position, word in enumerate(words):
        if word.endswith("robust-distill-bench"):
            return position + 1
        if words[position : position + 2] == ["-m", "bench"]:
            return position + 2
    return 0


def collect() -> list[PageCommand]:
    """Return the commands of all pages, each once."""
    unique: dict[str, PageCommand] = {}
    for page in PAGES:
        for command in find_commands(page, (ROOT / page).read_text(encoding="utf-8")):
            unique.setdefault(command.text, command)
    return list(unique.values())


COMMANDS = collect()
each_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.text)


def option_values(arguments: list[str]) -> dict[str, list[str]]:
    """Return option -> its values; plain words are those of ""."""
    values: dict[str, list[str]] = {"": []}
    name = ""
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            values[name] = [value] if equals else []
        else:
            values[name].append(word)
    return values


def fill(command: PageCommand, run_id: str) -> dict[str, list[str]]:
    """Return a command's options with its placeholders filled."""
    values = option_values(command.arguments)
    for option, replaced in values.items():
        table = VALUES.get((command.name, option), {}) if option else WORDS.get(command.name, {})
        values[option] = [table.get(word, word).replace("$RUN", run_id) for word in replaced]
    return values


def make_small(command: PageCommand, values: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return a command's options on tiny sizes; a suite for real images is planned alone."""
    suite = "".join(values.get("--suite", []))
    if suite in ONLY_PLANNED and not command.is_distributed:
        # Only a store that has imported a teacher knows its name.
        kept = {name: value for name, value in values.items() if name != "--teacher"}
        return kept | {"--dry-run": []}
    small = {option: [value] for option, value in SMALL.get(command.name, {}).items()}
    if command.needs_hub:
        small.pop("--checkpoint", None)
    return values | small


def argv(name: str, values: dict[str, list[str]]) -> list[str]:
    words = name.split() + values[""]
    for option, value in values.items():
        if option:
            words += [option, *value]
    return words


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of one run and its teacher, and the files that pages name."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setitem(ATTACKS, "aa", replace(ATTACKS["aa"], components=QUICK))
        run = argv("run", {"": [], "--method": ["rslad"]} | small_values("run"))
        assert cli.dispatch(run) == 0
        assert cli.dispatch(["export", "--suite", "digits", "--out", "leaderboards/results"]) == 0
        # Other commands of pages record runs of the same row under other protocols.
        shutil.copytree("runs", "one-row")
        (card,) = cards.read_cards(Path("runs"))
        shutil.copy(cards.teacher_file(Path("runs"), card.identity), "net.pt")
        test = load_data("digits", "data", limit_test=int(IMAGES["--limit-test"])).test
        torch.save(to_float(test.x), "adv.pt")
        words = argv("teacher import", {"": ["mine", "net.pt"]} | small_values("teacher import"))
        assert cli.dispatch(words) == 0
        suite = suites.get("digits").id
        names = ("rslad", suite, "digits", "resnet8-w4", "robust")
        tuned_config.write(Path("tuned.toml"), TunedConfig(*names, {"alpha": 0.9}, {"lr": 0.1}))
    return folder


def small_values(name: str) -> dict[str, list[str]]:
    return {option: [value] for option, value in SMALL[name].items()}


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a new folder that shares the store and has the files."""
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(ATTACKS, "aa", replace(ATTACKS["aa"], components=QUICK))
    return tmp_path


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve the repository that pages name."""
    pytest.importorskip("huggingface_hub")
    with serve_hub(folder / "hub") as server:
        connect(server.url, folder, monkeypatch)
        server.write("OWNER/NAME", {"net.pt": Path("net.pt").read_bytes()})
        yield server


@pytest.fixture(scope="module")
def run_id(home: Path) -> str:
    """Return the id of the student's run."""
    client = MlflowClient(f"sqlite:///{home / 'runs' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.role = 'student' and tags.method = 'rslad'")
    return str(run.info.run_id)


def test_pages_have_commands() -> None:
    assert {command.page for command in COMMANDS} >= {*PAGES} - {PAGE_OF_PIP}
    assert len(COMMANDS) > 40


def test_commands_are_found() -> None:
    page = """Say `python -m bench list` or `bench`, not `python -m bench.cli.reference_pages`.

    A=b python -m bench run --method rslad \\
        --suite digits   # a comment

```sh
$ cd x && .venv/bin/python -m bench doctor
mlflow server --port 1
```
"""
    commands_of_page = list(find_commands("page", page))
    assert [(command.before, command.words) for command in commands_of_page] == [
        (("python", "-m"), ("list",)),
        (("A=b", "python", "-m"), ("run", "--method", "rslad", "--suite", "digits")),
        ((".venv/bin/python", "-m"), ("doctor",)),
    ]


@pytest.mark.slow
@each_command
def test_command_of_a_page(
    command: PageCommand,
    folder: Path,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if command.needs_hub:
        request.getfixturevalue("hub")
    entry = commands.load_module(command.words[0]).COMMAND
    if isinstance(entry, dict):
        entry = entry[command.words[1]]
    values = fill(command, run_id)
    words = argv(command.name, values)[len(command.name.split()) :]
    if entry.read:
        entry.read(words)
    else:
        parse_options(entry.options, words, command.name)
    for assignment in command.before:
        name, equals, value = assignment.partition("=")
        if equals:
            monkeypatch.setenv(name, ENVIRONMENT[name][value])
    small = argv(command.name, make_small(command, values))
    if command.name in ONLY_PARSED:
        return
    if command.is_distributed:
        launch(small)
    elif command.name == "ui":
        serve(small)
    else:
        assert cli.dispatch(small) == 0


def launch(words: list[str]) -> None:
    """Run on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", *TWO_PROCESSES]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*launcher, "-m", "bench", *words], env=environment, check=True)


def serve(words: list[str]) -> None:
    """Start a server, wait for its address and interrupt it."""
    program = [sys.executable, "-m", "bench", *words, "--port", str(free_port())]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            assert "http://127.0.0.1:" in server.stdout.readline()
        finally:
            # Not SIGINT, which a shell lets its processes in the background ignore.
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 130
