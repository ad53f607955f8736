"""Methods from outside: the example package, plugins that are broken, slow or in the way, and the verb `new-method`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import methods
from bench import cli
from bench.cli.commands import new_method
from bench.execution import plan

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "plugin"
SMALL = "--epochs 1 --suite digits --student resnet8-w4 --limit-train 128 --limit-test 8"
MINE = '''"""Mine."""
from dataclasses import dataclass
from methods.base import Method, hp

@dataclass(frozen=True)
class Mine(Method):
    """The formula of mine."""
'''
PLAIN = MINE.replace("@dataclass(frozen=True)\n", "")
SLOW = "import time\ntime.sleep(600)\n"


def python(words: str, folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """`python WORDS` in a folder, with `path` before the installed packages."""
    own = {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment = {
        name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"
    } | own
    command = [sys.executable, *words.split()]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def passed(words: str, folder: Path, *path: Path) -> str:
    """What the command prints; it must succeed."""
    done = python(words, folder, *path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def offer(folder: Path, name: str, code: str, package: str = "", target: str = "Mine") -> None:
    """Puts a package into `folder`, as an installation would, whose one module `code` offers the method `name`."""
    package = package or f"pack-{name}"
    module = package.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{module}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[bench.methods]\n{name} = {module}:{target}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose packages this process and its children find; signal handlers and modules are restored."""
    monkeypatch.syspath_prepend(tmp_path)
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    yield tmp_path
    for name, handler in handlers.items():
        signal.signal(name, handler)
    for name in [name for name in sys.modules if name.startswith("pack_")]:
        del sys.modules[name]


def bench(words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert isinstance(stop.value.code, int)
    return stop.value.code


# --- The example


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's files, installed by pip without a network into the folder `site` beside them."""
    folder = tmp_path_factory.mktemp("example") / "plugin"
    shutil.copytree(
        EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", ".*")
    )
    passed("-m pip install -q --no-index --no-deps --no-build-isolation --target site .", folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file find the teacher that the first of them trains."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
def test_example_passes_its_own_tests(installed: Path) -> None:
    said = passed("-m pytest -q -p no:cacheprovider tests", installed, installed / "site")
    assert " passed" in said
    assert "failed" not in said


def test_example_is_a_method_like_any_other(installed: Path, tmp_path: Path) -> None:
    code = "import methods; print('gated' in methods.names(), methods.load('gated').__doc__)"
    (tmp_path / "ask.py").write_text(code)
    assert passed("ask.py", tmp_path, installed / "site").startswith(
        "True mean_i [g_i KL(T(x_i) || S(x~_i))"
    )
    assert "--alpha X" in passed("-m bench run --method gated --help", tmp_path, installed / "site")


@pytest.mark.e2e
def test_example_runs(installed: Path, store: Path) -> None:
    said = passed(f"-m bench run --method gated --alpha 0.5 {SMALL}", store, installed / "site")
    assert "gated seed 0 (alpha=0.5): clean" in said
    passed("-m bench leaderboard", store)
    text = (store / "leaderboard" / "leaderboard.md").read_text()
    assert re.search(
        r"\| gated \(alpha=0.5; [^|]*limit_test=8[^|]*\) \| resnet8-w16-trades \|", text
    )


# --- One file for a built-in method


@pytest.mark.e2e
def test_a_method_touches_exactly_one_file(store: Path, tmp_path: Path) -> None:
    """Command line, list, contract, record and leaderboard find a file in methods/ of a copy of the source."""
    root = Path(cli.__file__).parents[2]
    sources = [root / name for name in ("attacks", "bench", "leaderboards", "methods")]
    for source in (*sources, Path(__file__).parent):
        shutil.copytree(
            source, tmp_path / source.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    before = set(tmp_path.rglob("*"))
    passed("-m bench new-method fresh --out methods", tmp_path)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "methods" / "fresh.py"}
    assert "fresh             The formula, in one line" in passed("-m bench list", tmp_path)
    said = passed(
        "-m pytest -q -p no:cacheprovider tests/test_methods.py -k Fresh", tmp_path, tmp_path
    )
    assert " passed" in said
    said = passed(f"-m bench run --method fresh --store {store / 'runs'} {SMALL}", tmp_path)
    assert "fresh seed 0: clean" in said
    passed(f"-m bench leaderboard --store {store / 'runs'}", tmp_path)
    text = (tmp_path / "leaderboard" / "leaderboard.md").read_text()
    assert re.search(r"\| fresh \([^|]*limit_test=8[^|]*\) \| resnet8-w16-trades \|", text)


# --- Plugins that cannot be used


BROKEN = [
    (
        "import no_such_module",
        "Mine",
        "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    ("raise RuntimeError('no\\nluck')", "Mine", "cannot be loaded: RuntimeError: no luck"),
    ("import sys; sys.exit(3)", "Mine", "cannot be loaded: SystemExit: 3"),
    ("def broken(:", "Mine", "cannot be loaded: SyntaxError: invalid syntax"),
    (
        MINE,
        "Yours",
        "cannot be loaded: AttributeError: module 'pack_broken' has no attribute 'Yours'",
    ),
    (MINE, "hp", "cannot be used: no class derived from methods.base.Method"),
    (
        "from collections import Counter as Mine",
        "Mine",
        "cannot be used: no class derived from methods.base.Method",
    ),
    (PLAIN, "Mine", "cannot be used: Mine lacks @dataclass(frozen=True)"),
    (
        f"{MINE}    alpha: float",
        "Mine",
        "cannot be used: TypeError: Mine.__init__() missing 1 required",
    ),
    (f"{MINE}    alpha: float = 1.0", "Mine", "cannot be used: alpha: declare it with hp(...)"),
    (
        f"{MINE}    alpha: float = hp(-1.0, 'a', low=0.0, high=1.0)",
        "Mine",
        "ValueError: alpha = -1.0: not negative",
    ),
    (
        f"{MINE}    seeds: int = hp(1, 'a', low=0, high=2)",
        "Mine",
        "these names are flags of `run`: seeds",
    ),
]


@pytest.mark.parametrize(("code", "target", "said"), BROKEN, ids=[said for *_, said in BROKEN])
def test_a_broken_plugin_named_is_one_line(
    code: str, target: str, said: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(site, "broken", code, target=target)
    for words in ("--suite digits", "--help"):
        assert bench(f"run --method broken {words}") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: plugin 'broken' ")
        assert said in line
        assert line.endswith("(package pack-broken)")


def test_broken_plugins_harm_no_other(
    site: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every way to be broken side by side: a line of warning each, within a limit of time; what works is left."""
    offer(site, "works", "print('hello')\n" + MINE)
    offer(site, "absent", "import no_such_module")
    offer(site, "crash", "import os\nos.abort()")
    offer(site, "asks", "input()")
    offer(site, "slow", SLOW)
    offer(site, "kd", MINE)
    offer(site, "all", MINE)
    offer(site, "twice", MINE, package="pack-one")
    offer(site, "twice", MINE, package="pack-two")
    monkeypatch.setattr(methods, "builtin", lambda: ["kd", "natural"])
    monkeypatch.setattr(methods, "PATIENCE", 2)
    assert plan.wanted("all") == ["kd", "natural", "works"]
    assert capfd.readouterr() == (
        "",
        "warning: plugin 'absent' cannot be loaded: ModuleNotFoundError: No module named 'no_such_module' "
        "(package pack-absent)\n"
        "warning: plugin 'all' is ignored, for the command line cannot name it (package pack-all)\n"
        "warning: plugin 'asks' cannot be loaded: EOFError: EOF when reading a line (package pack-asks)\n"
        "warning: plugin 'crash' cannot be loaded: its import ends Python with -6 (package pack-crash)\n"
        "warning: plugin 'kd' is ignored, for a built-in method has its name (package pack-kd)\n"
        "warning: plugin 'slow' is left out: its import takes more than 2 s; --method with its name waits for it "
        "(package pack-slow)\n"
        "warning: plugin 'twice' is offered more than once: uninstall all but one "
        "(package pack-one and package pack-two)\n",
    )
    assert not any(name.startswith("pack_") for name in sys.modules)


def test_a_shadow_is_said_and_the_built_in_method_runs(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(site, "kd", "raise RuntimeError('never imported')")
    said = "plugin 'kd' is ignored, for a built-in method has its name (package pack-kd)"
    assert methods.load("kd").__module__ == "methods.kd"
    assert plan.wanted("natural,kd") == ["natural", "kd"]
    assert capsys.readouterr().err == f"warning: {said}\n"
    assert plan.wanted("natural") == ["natural"]
    assert capsys.readouterr().err == ""


def test_two_of_one_name_are_refused(site: Path) -> None:
    for package in ("pack-one", "pack-two"):
        offer(site, "twice", MINE, package=package)
    with pytest.raises(
        methods.PluginError,
        match=r"'twice' is offered more than once.*pack-one and package pack-two",
    ):
        methods.load("twice")


def test_list_says_what_is_wrong(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(site, "works", MINE)
    offer(site, "broken", PLAIN)
    offer(site, "kd", MINE)
    monkeypatch.setattr(methods, "builtin", lambda: ["kd"])
    assert bench("list") == 0
    text = capsys.readouterr().out
    assert "\n  works             The formula of mine.\n" in text
    assert (
        "\n  broken            cannot be used: Mine lacks @dataclass(frozen=True) (package pack-broken)\n"
        in text
    )
    assert (
        "; a plugin of this name is ignored, for a built-in method has its name (package pack-kd)\n"
        in text
    )


def test_a_slow_plugin_is_not_imported_where_names_will_do(site: Path) -> None:
    offer(site, "slow", SLOW)
    start = time.monotonic()
    for words in ("--help", "run --help", "run --method nonsense", "new-method slow"):
        said = python(f"-m bench {words}", site, site)
        assert said.returncode in (0, 2)
    assert time.monotonic() - start < 300  # SLOW sleeps for longer


@pytest.mark.e2e
def test_all_runs_without_the_broken_one(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(site, "broken", "import no_such_module")
    monkeypatch.chdir(site)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(methods, "builtin", lambda: ["natural"])
    assert bench(f"run --method all {SMALL}") == 0
    said = capsys.readouterr().err
    assert said.count("warning: plugin 'broken' cannot be loaded: ModuleNotFoundError") == 1
    assert "natural seed 0: clean" in said


# --- new-method


@pytest.mark.slow
def test_new_method_passes_its_test_at_once(tmp_path: Path) -> None:
    said = passed("-m bench new-method my_own2 --out new/folder", tmp_path)
    assert said.startswith("wrote new/folder/my_own2.py\nwrote new/folder/test_my_own2.py\n")
    assert 'my_own2 = "my_own2:MyOwn2"' in said
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "my_own2.py",
        "test_my_own2.py",
    ]
    passed("-m ruff format --isolated --check .", tmp_path)
    assert " passed" in passed(
        "-m pytest -q -p no:cacheprovider new/folder/test_my_own2.py", tmp_path
    )


def test_the_guide_shows_the_skeleton() -> None:
    assert (
        f"```python\n{new_method.fill_template('method.py.txt', {'class_name': 'Mine'})}```"
        in (ROOT / "CONTRIBUTING.md").read_text()
    )


BAD_NAMES = [
    (
        "2fast",
        2,
        "'2fast' is no name for a method: a letter, then letters, digits and _, all lower-case",
    ),
    ("my-own", 2, "'my-own' is no name for a method"),
    ("../own", 2, "'../own' is no name for a method"),
    ("Own", 2, "'Own' is no name for a method"),
    ("class", 2, "'class' is no name for a method"),
    ("übung", 2, "'übung' is no name for a method"),
    ("gacd", 2, "there is a method 'gacd': choose another name"),
    ("outside", 2, "there is a method 'outside': choose another name"),
    ("here", 2, "'here.py' exists: choose another name, or another folder with --out"),
    ("tested", 2, "'test_tested.py' exists: choose another name, or another folder with --out"),
    ("base", 2, "the name 'base' is taken"),
    ("all", 2, "the name 'all' is taken"),
    ("batch", 2, "the name 'batch' is taken"),
    ("torch", 2, "the name 'torch' is taken, by a module or the command line: choose another"),
    ("own --out here.py", 1, "cannot write 'here.py/own.py': "),
    ("own --out here.py/deeper", 1, "cannot write 'here.py/deeper/own.py': Not a directory"),
    ("own --uot .", 2, "unknown flag --uot: did you mean --out?"),
    ("", 2, "missing: "),
]


@pytest.mark.parametrize(
    ("words", "code", "said"), BAD_NAMES, ids=[words for words, *_ in BAD_NAMES]
)
def test_new_method_refuses_in_one_line(
    words: str,
    code: int,
    said: str,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    offer(site, "outside", "raise RuntimeError('never imported')")
    monkeypatch.chdir(site)
    for name in ("here.py", "test_tested.py"):
        (site / name).write_text("")
    before = set(site.rglob("*"))
    assert bench(f"new-method {words}") == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert set(site.rglob("*")) == before
