"""Whatever is read: it is taken, or refused by an error of this project in one line.

The inputs are sound ones, changed at random. They are the same on each call; `slow` tries more.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_store import Records

from bench import datasets, models
from bench.cli import commands
from bench.cli.parsing import Command, parse_options
from bench.execution.hyper import check_hyper
from bench.execution.plan import plan_runs
from bench.execution.suite_file import resolve_suite
from bench.models import checkpoint
from bench.protocol import suites, tuned_config
from bench.protocol.options import flags_of
from bench.records.import_ import check_protocol
from bench.system.errors import BenchError
from leaderboards.read.records import record_row
from leaderboards.schema.record import RecordError, parse_record
from methods import PluginError

Check = Callable[[Any], None]
QUICK, MANY = 40, 400


def holds_for(strategy: st.SearchStrategy[Any]) -> Callable[[Check], Any]:
    """Make a test of a check: on some inputs of a strategy, in `slow` on many."""

    def make_test(check: Check) -> Any:
        @pytest.mark.parametrize("examples", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
        def test(examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
            monkeypatch.chdir(tmp_path)
            run = given(strategy)(check)
            settings(
                max_examples=examples,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )(run)()

        test.__doc__ = check.__doc__
        return test

    return make_test


@contextlib.contextmanager
def one_line_or_none(*kinds: type[Exception]) -> Iterator[None]:
    """Let the errors of this project pass, if their message is one line; others fail the test."""
    try:
        yield
    except kinds as error:
        message = str(error)
        assert message.strip()
        assert len(message) < 2_000
        assert len(message.splitlines()) == 1


# --- Changed documents

NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, -(10**300)]),
    st.floats(),
    st.sampled_from([1e308, -1e308, 5e-324, math.inf, math.nan]),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "digits", "resnet8-w4", "resnet1024-w1024", "os:getcwd", "timm:x", "\x1b[31m", "a\nb",
         "../../etc/passwd", "digits@3", "digits@99999999999", "aa", "Linf", "L2", "student"]
    ),
)  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
# Where to change a document: positions on the way down, then what to do there.
CHANGES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), min_size=1, max_size=5),
        st.sampled_from(["set", "set", "delete", "add"]),
        VALUES,
    ),
    min_size=1,
    max_size=3,
)


def change(document: Any, changes: Any) -> Any:
    """Return a copy of a document of dictionaries and lists with some changes."""
    document = copy.deepcopy(document)
    for way, action, value in changes:
        target = document
        for position in way[:-1]:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            if not keys or not isinstance(target[keys[position % len(keys)]], (dict, list)):
                break
            target = target[keys[position % len(keys)]]
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        if action == "add" or not keys:
            if isinstance(target, dict):
                target[str(value)[:9]] = value
            else:
                target.append(value)
        elif action == "delete":
            del target[keys[way[-1] % len(keys)]]
        else:
            target[keys[way[-1] % len(keys)]] = value
    return document


@cache
def sound_record() -> Any:
    record = Records(Path("records")).make(
        "rslad",
        0.5,
        f"{suites.DIGITS.id}",
        curves={"val/robust": [(0, 0.1), (1, 0.2)]},
        environment={"data": {"sha256": "0"}},
        checksums={"best": "ab" * 32},
    )
    return json.loads(record.to_json())


def check_record(content: Any) -> None:
    with one_line_or_none(RecordError):
        record = parse_record(json.dumps(content).encode())
        assert parse_record(record.to_json().encode()) == record
        assert record_row(record)["record"] is record
        with one_line_or_none(RecordError, BenchError):
            check_protocol(record)


@holds_for(CHANGES)
def test_a_changed_record(changes: Any) -> None:
    check_record(change(sound_record(), changes))


@holds_for(CHANGES)
def test_a_record_of_a_changed_spec(changes: Any) -> None:
    """Its id fits it."""
    record = sound_record()
    spec = change(record["spec"], changes)
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    check_record(record | {"spec": spec, "spec_id": digest[:16]})


@holds_for(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_bytes_as_a_record(content: bytes) -> None:
    with one_line_or_none(RecordError):
        parse_record(content)


# --- TOML


def without_nothing(value: Any) -> Any:
    """Return a document without None, which TOML lacks."""
    if isinstance(value, dict):
        return {key: without_nothing(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple)):
        return [without_nothing(entry) for entry in value if entry is not None]
    return value


def write_toml(content: Any) -> Path:
    path = Path("a.toml")
    # A lone surrogate cannot be written.
    path.write_bytes(tomli_w.dumps(without_nothing(content)).encode(errors="replace"))
    return path


SUITE = without_nothing(dataclasses.asdict(suites.DIGITS)) | {"name": "mine"}
SMALL_SUITE = {"base": "digits", "name": "mine", "training": {"epochs": 2}, "seeds": [0, 1]}
CONFIG = {
    "method": "rslad", "suite": suites.DIGITS.id, "dataset": "digits", "student": "resnet8-w4",
    "teacher": "robust", "hyper": {"alpha": 0.5}, "training": {"lr": 0.1, "momentum": 0.9},
    "provenance": {"trials": 20},
}  # fmt: skip


@holds_for(st.tuples(st.sampled_from([SUITE, SMALL_SUITE]), CHANGES))
def test_a_changed_suite(inputs: Any) -> None:
    document = change(*inputs)
    for text in (str(write_toml(document)), json.dumps(document)):
        with one_line_or_none(BenchError, PluginError):
            suite = resolve_suite(text)
            assert suite.id.startswith(f"{document['name']}-")


@holds_for(CHANGES)
def test_a_changed_configuration(changes: Any) -> None:
    path = write_toml(change(CONFIG, changes))
    with one_line_or_none(BenchError, PluginError):
        config = tuned_config.read(path)
        assert config.trials >= 0
        if config.method == "rslad":
            check_hyper(config.method, config.hyper, str(path))


@holds_for(st.binary(max_size=100) | st.text(alphabet='ab=[]{}",.\n#0-', max_size=60))
def test_bytes_as_toml(content: bytes | str) -> None:
    Path("a.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (resolve_suite, lambda text: tuned_config.read(Path(text))):
        with one_line_or_none(BenchError):
            read("a.toml")


# --- Checkpoints


@cache
def sound_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(models.build("resnet8-w4", datasets.DIGITS).state_dict())


KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "float8": lambda x: x.float().to(torch.float8_e4m3fn),
    "float8_e5m2": lambda x: x.float().to(torch.float8_e5m2),
    "bits": lambda x: torch.zeros(x.shape, dtype=torch.uint8).view(torch.bits8),
    "unsigned": lambda x: torch.zeros(x.shape, dtype=torch.uint16),
    "whole": lambda x: x.long(),
    "truth": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse(),
    "compressed": lambda x: torch.eye(3).to_sparse_csr(),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "jagged": lambda x: torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged),
    "meta": lambda x: x.to("meta"),
    "view": lambda x: torch.zeros(1).expand(10**6, 10**6),
    "empty": lambda x: torch.zeros(0),
    "number": lambda x: torch.tensor(0.5),
    "huge": lambda x: torch.full(x.shape, 1e300, dtype=torch.float64),
    "infinite": lambda x: torch.full(x.shape, math.inf),
    "parameter": lambda x: torch.nn.Parameter(x.float()),
    "list": lambda x: [0.5, 1e400],
    "text": lambda x: "text",
    "none": lambda x: None,
    "optimiser": lambda x: {"state": {0: x}, "param_groups": [{"lr": 0.1, "params": [0]}]},
}
STATES = st.tuples(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from([*KINDS])), max_size=3),
    # Names of more tensors, and what lies around the network.
    st.dictionaries(
        st.one_of(TEXTS, st.integers(), st.sampled_from(["mean", "std", "module.mean", "."])),
        st.sampled_from([*KINDS]),
        max_size=3,
    ),
    st.lists(st.sampled_from(["state_dict", "model", "ema", "a/b", 0, "\n"]), max_size=3),
    st.sampled_from(["", "", "", "ema", "module", "."]),
)


@pytest.mark.filterwarnings("ignore")
@holds_for(STATES)
def test_a_changed_checkpoint(inputs: Any) -> None:
    changed, added, around, key = inputs
    state: dict[Any, Any] = dict(sound_state())
    for position, kind in changed:
        name = sorted(state)[position % len(state)]
        state[name] = KINDS[kind](sound_state()[name])
    for name, kind in added.items():
        state[name] = KINDS[kind](torch.zeros(1))
    content: Any = state
    for name in around:
        content = {name: content, "epoch": 3}
    torch.save(content, "net.pt")
    with one_line_or_none(BenchError):
        net = checkpoint.load(Path("net.pt"), "resnet8-w4", datasets.DIGITS, key=key)
        assert net(torch.rand(2, 1, 8, 8)).isfinite().all()


@cache
def saved_state() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": sound_state()}, buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
@holds_for(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4)
    | st.floats(0, 1)
    | st.binary(max_size=60)
)
def test_a_damaged_checkpoint(damage: Any) -> None:
    """Bytes changed anywhere, or the end cut off, or something else altogether."""
    content = bytearray(saved_state())
    if isinstance(damage, bytes):
        content = bytearray(damage)
    elif isinstance(damage, float):
        del content[round(damage * len(content)) :]
    else:
        for target, byte in damage:
            content[round(target * (len(content) - 1))] = byte
    Path("net.pt").write_bytes(content)
    with one_line_or_none(BenchError):
        checkpoint.load(Path("net.pt"), "resnet8-w4", datasets.DIGITS)


# --- Command lines


def list_commands() -> dict[str, Command]:
    entries = {}
    for name in commands.COMMANDS:
        command = commands.load_module(name).COMMAND
        if isinstance(command, Command):
            entries[name] = command
        else:
            entries |= {f"{name} {action}": entry for action, entry in command.items()}
    return entries


ENTRIES = list_commands()
WORDS = st.one_of(
    TEXTS,
    NUMBERS.map(str),
    st.sampled_from(["--", "-", "-q", "-h", "--x", "None", "True", "natural", "gacd", "all", "\0",
                     "\udcff", "[x]", "{", "{}", "a=b", "1,2", "@x", "hf:", "x.toml"]),
)  # fmt: skip
LINES = st.sampled_from([*ENTRIES]).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(
            WORDS
            | st.sampled_from(flags_of(ENTRIES[name].options))
            | st.tuples(st.sampled_from(flags_of(ENTRIES[name].options)), WORDS).map("=".join),
            max_size=6,
        ),
    )
)


@holds_for(LINES)
def test_any_command_line(inputs: Any) -> None:
    """Its options are read, refused, or explained."""
    name, words = inputs
    entry, output = ENTRIES[name], io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            with one_line_or_none(BenchError, PluginError):
                if entry.read:
                    entry.read(words)
                else:
                    parse_options(entry.options, words, name)
        except SystemExit as stop:
            code = stop.code
        else:
            code = "read or refused"
    assert (code == 0) == ("usage: " in output.getvalue())
    assert (code != 0) == (output.getvalue() == "")


RUN_FLAGS = ["--student", "--teacher", "--seeds", "--epochs", "--lr", "--awp", "--tuned", "--suite",
             "--dataset", "--limit-train", "--limit-test", "--official", "--momentum"]  # fmt: skip


@holds_for(
    st.lists(
        st.tuples(
            st.sampled_from(RUN_FLAGS), WORDS | st.sampled_from(["0", "1", "0.5", "robust", "64"])
        ),
        max_size=4,
        unique_by=lambda pair: pair[0],
    )
)
def test_any_request_of_run(pairs: Any) -> None:
    """Its runs are planned or refused, and nothing is made."""
    words = ["--method", "rslad"]
    for flag, value in pairs:
        words += [flag] if flag == "--official" else [f"{flag}={value}"]
    with one_line_or_none(BenchError, PluginError):
        read = ENTRIES["run"].read
        assert read
        assert plan_runs(*read(words))
    assert not list(Path().iterdir())
