"""Methods from outside: the example package, plugins that cannot be used, and `new-method`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packages import copy_packages, install_package, site

import methods
from bench import cli
from bench.cli.commands import new_method
from bench.execution import plan

__all__ = ["site"]
ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "plugin"
SMALL = "--epochs 1 --suite digits --student resnet8-w4 --limit-train 128 --limit-test 8"
PLUGIN = '''"""Mine."""
from dataclasses import dataclass
from methods.base import Method, hp

@dataclass(frozen=True)
class Mine(Method):
    """The formula of mine."""
'''
NOT_FROZEN = PLUGIN.replace("@dataclass(frozen=True)\n", "")
SLOW = "import time\ntime.sleep(600)\n"


def run_python(arguments: str, folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in a folder, with `path` before the installed packages."""
    environment = dict(os.environ)
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, *arguments.split()]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def output_of(arguments: str, folder: Path, *path: Path) -> str:
    """Return what the command prints; it must succeed."""
    process = run_python(arguments, folder, *path)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def install_plugin(
    folder: Path, name: str, code: str, package: str = "", target: str = "Mine"
) -> None:
    """Install a package into `folder` whose one module `code` offers the method `name`."""
    install_package(folder, "bench.methods", name, code, target, package)


def exit_code(arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert isinstance(stop.value.code, int)
    return stop.value.code


# --- The example


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's files, installed by pip into the folder `site` beside them."""
    folder = tmp_path_factory.mktemp("example") / "plugin"
    shutil.copytree(
        EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", ".*")
    )
    output_of("-m pip install -q --no-index --no-deps --no-build-isolation --target site .", folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the runs of this file share a teacher."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
def test_example_passes_its_own_tests(installed: Path) -> None:
    text = output_of("-m pytest -q -p no:cacheprovider tests", installed, installed / "site")
    assert " passed" in text
    assert "failed" not in text


def test_example_is_a_method_like_any_other(installed: Path, tmp_path: Path) -> None:
    code = "import methods; print('gated' in methods.names(), methods.load('gated').__doc__)"
    (tmp_path / "ask.py").write_text(code)
    assert output_of("ask.py", tmp_path, installed / "site").startswith(
        "True mean_i [g_i KL(T(x_i) || S(x~_i))"
    )
    assert "--alpha X" in output_of(
        "-m bench run --method gated --help", tmp_path, installed / "site"
    )


def test_example_adds_to_every_list(installed: Path, tmp_path: Path) -> None:
    lines = output_of("-m bench list", tmp_path, installed / "site").splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert [names.count(name) for name in ("gated", "plainnet-w8", "bars")] == [1, 1, 2]


@pytest.mark.e2e
def test_example_runs(installed: Path, tmp_path: Path) -> None:
    """Its method trains its model on its data set by its suite, up to the leaderboard."""
    run = "-m bench run --method gated --alpha 0.5 --suite bars --epochs 1 --limit-test 20"
    log = output_of(run, tmp_path, installed / "site")
    assert "bars plainnet-w16 trades seed 0: clean" in log
    assert "bars plainnet-w8 gated seed 0 (alpha=0.5): clean" in log
    # Records are read without the package.
    output_of("-m bench leaderboard", tmp_path)
    text = (tmp_path / "leaderboard" / "leaderboard.md").read_text()
    assert "bars@1" in text
    assert "| gated (alpha=0.5) | plainnet-w16-trades |" in text


# --- One file for a built-in method


@pytest.mark.e2e
def test_a_method_touches_exactly_one_file(store: Path, tmp_path: Path) -> None:
    """Command line, list, contract, record and leaderboard read a new file in methods/."""
    copy_packages(tmp_path)
    tests = Path(__file__).parent
    shutil.copytree(tests, tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    before = set(tmp_path.rglob("*"))
    output_of("-m bench new-method fresh --out methods", tmp_path)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "methods" / "fresh.py"}
    assert "  fresh       What it is called" in output_of("-m bench list", tmp_path)
    log = output_of(
        "-m pytest -q -p no:cacheprovider tests/test_methods.py -k Fresh", tmp_path, tmp_path
    )
    assert " passed" in log
    log = output_of(f"-m bench run --method fresh --store {store / 'runs'} {SMALL}", tmp_path)
    assert "fresh seed 0: clean" in log
    output_of(f"-m bench leaderboard --store {store / 'runs'}", tmp_path)
    text = (tmp_path / "leaderboard" / "leaderboard.md").read_text()
    assert re.search(r"\| fresh \([^|]*limit_test=8[^|]*\) \| resnet8-w16-trades \|", text)


NIFGSM = """    "nifgsm": NamedAttack(
        (Attack("NIFGSM", 5, 2 / 255),), "Nesterov momentum", passes=10, norms=("Linf",)
    ),
"""
NIFGSM_SUITE = """name = "mine"
base = "digits"
attacks = ["fgsm", "nifgsm"]
"""


def test_an_attack_touches_exactly_one_file(tmp_path: Path) -> None:
    """List, suite, estimate, record and leaderboard read a new row of the catalogue."""
    copy_packages(tmp_path)
    catalogue = tmp_path / "attacks" / "catalog.py"
    head, tail = catalogue.read_text().split('    "deepfool": NamedAttack(')
    catalogue.write_text(f'{head}{NIFGSM}    "deepfool": NamedAttack({tail}')
    assert "nifgsm" in output_of("-m bench list attacks", tmp_path)
    (tmp_path / "mine.toml").write_text(NIFGSM_SUITE)
    short = "--limit-train 128 --limit-test 8 --epochs 1 --student resnet8-w4"
    output_of(f"-m bench run --method natural --suite mine.toml {short}", tmp_path)
    output_of("-m bench leaderboard", tmp_path)
    pages = (tmp_path / "leaderboard").rglob("*.html")
    assert any("NIFGSM" in page.read_text() for page in pages)


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
        PLUGIN,
        "Yours",
        "cannot be loaded: AttributeError: module 'pack_broken' has no attribute 'Yours'",
    ),
    (PLUGIN, "hp", "cannot be used: no class derived from methods.base.Method"),
    (
        "from collections import Counter as Mine",
        "Mine",
        "cannot be used: no class derived from methods.base.Method",
    ),
    (NOT_FROZEN, "Mine", "cannot be used: Mine lacks @dataclass(frozen=True)"),
    (
        f"{PLUGIN}    alpha: float",
        "Mine",
        "cannot be used: TypeError: Mine.__init__() missing 1 required",
    ),
    (f"{PLUGIN}    alpha: float = 1.0", "Mine", "cannot be used: alpha: declare it with hp(...)"),
    (
        f"{PLUGIN}    alpha: float = hp(-1.0, 'a', low=0.0, high=1.0)",
        "Mine",
        "ValueError: alpha = -1.0: not negative",
    ),
    (
        f"{PLUGIN}    seeds: int = hp(1, 'a', low=0, high=2)",
        "Mine",
        "these names are flags of `run`: seeds",
    ),
]


@pytest.mark.parametrize(
    ("code", "target", "message"), BROKEN, ids=[message for *_, message in BROKEN]
)
def test_a_broken_plugin_named_is_one_line(
    code: str, target: str, message: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_plugin(site, "broken", code, target=target)
    for arguments in ("--suite digits", "--help"):
        assert exit_code(f"run --method broken {arguments}") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: plugin 'broken' ")
        assert message in line
        assert line.endswith("(package pack-broken)")


def test_broken_plugins_harm_no_other(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each gets a line of warning; the one that works is used."""
    install_plugin(site, "works", PLUGIN)
    install_plugin(site, "absent", "import no_such_module")
    install_plugin(site, "exits", "raise SystemExit(3)")
    install_plugin(site, "kd", PLUGIN)
    install_plugin(site, "all", PLUGIN)
    install_plugin(site, "twice", PLUGIN, package="pack-one")
    install_plugin(site, "twice", PLUGIN, package="pack-two")
    monkeypatch.setattr(methods, "builtin", lambda: ["kd", "natural"])
    assert plan.requested_methods("all") == ["kd", "natural", "works"]
    assert caplog.messages == [
        "warning: plugin 'absent' cannot be loaded: ModuleNotFoundError: "
        "No module named 'no_such_module' (package pack-absent)",
        "warning: plugin 'all' is ignored, for the command line cannot name it (package pack-all)",
        "warning: plugin 'exits' cannot be loaded: SystemExit: 3 (package pack-exits)",
        "warning: plugin 'kd' is ignored, for a built-in method has its name (package pack-kd)",
        "warning: plugin 'twice' is offered more than once: uninstall all but one "
        "(package pack-one and package pack-two)",
    ]
    assert {name for name in sys.modules if name.startswith("pack_")} == {"pack_works"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("def broken(:", "cannot be loaded: SyntaxError: invalid syntax"),
        ("import sys; sys.exit(3)", "cannot be loaded: SystemExit: 3"),
        ("METHOD = 3", "cannot be used: no class derived from methods.base.Method"),
        (f"{NOT_FROZEN}METHOD = Mine", "cannot be used: Mine lacks @dataclass(frozen=True)"),
    ],
)
def test_a_broken_file_of_methods_is_one_line(
    code: str,
    message: str,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (site / "pack_broken.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(site)])
    monkeypatch.setattr(methods, "builtin", lambda: ["kd", "pack_broken"])
    assert plan.requested_methods("all") == ["kd"]
    (warning,) = caplog.messages
    assert warning.startswith(f"warning: method 'pack_broken' {message}")
    assert warning.endswith(" (methods/pack_broken.py)")
    assert exit_code("run --method pack_broken --suite digits") == 1
    assert capsys.readouterr().err == f"{warning.replace('warning', 'error', 1)}\n"
    assert exit_code("list") == 0
    assert message in " ".join(capsys.readouterr().out.split())
    sys.modules.pop("methods.pack_broken", None)


def test_a_plugin_with_a_built_in_name_is_ignored(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install_plugin(site, "kd", "raise RuntimeError('never imported')")
    message = "plugin 'kd' is ignored, for a built-in method has its name (package pack-kd)"
    assert methods.load("kd").__module__ == "methods.kd"
    assert plan.requested_methods("natural,kd") == ["natural", "kd"]
    assert caplog.messages == [f"warning: {message}"]
    assert plan.requested_methods("natural") == ["natural"]
    assert len(caplog.messages) == 1


def test_two_of_one_name_are_refused(site: Path) -> None:
    for package in ("pack-one", "pack-two"):
        install_plugin(site, "twice", PLUGIN, package=package)
    with pytest.raises(
        methods.PluginError,
        match=r"'twice' is offered more than once.*pack-one and package pack-two",
    ):
        methods.load("twice")


def test_list_shows_the_fault(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_plugin(site, "works", PLUGIN)
    install_plugin(site, "broken", NOT_FROZEN)
    install_plugin(site, "kd", PLUGIN)
    monkeypatch.setattr(methods, "builtin", lambda: ["kd"])
    assert exit_code("list") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert " works Mine " in text
    assert (
        " broken cannot be used: Mine lacks @dataclass(frozen=True) (package pack-broken) " in text
    )
    assert (
        "; a plugin of this name is ignored, for a built-in method has its name (package pack-kd) "
        in text
    )


def test_a_slow_plugin_is_not_imported_where_names_will_do(site: Path) -> None:
    install_plugin(site, "slow", SLOW)
    start = time.monotonic()
    for arguments in ("--help", "run --help", "run --method nonsense", "new-method slow"):
        process = run_python(f"-m bench {arguments}", site, site)
        assert process.returncode in (0, 2)
    # SLOW sleeps for longer.
    assert time.monotonic() - start < 300


@pytest.mark.e2e
def test_all_runs_without_the_broken_one(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_plugin(site, "broken", "import no_such_module")
    monkeypatch.chdir(site)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(methods, "builtin", lambda: ["natural"])
    assert exit_code(f"run --method all {SMALL}") == 0
    text = capsys.readouterr().err
    assert text.count("warning: plugin 'broken' cannot be loaded: ModuleNotFoundError") == 1
    assert "natural seed 0: clean" in text


# --- new-method


@pytest.mark.slow
def test_new_method_passes_its_test_at_once(tmp_path: Path) -> None:
    text = output_of("-m bench new-method my_own2 --out new/folder", tmp_path)
    assert text.startswith("wrote new/folder/my_own2.py\nwrote new/folder/test_my_own2.py\n")
    assert 'my_own2 = "my_own2:MyOwn2"' in text
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "my_own2.py",
        "test_my_own2.py",
    ]
    output_of("-m ruff format --isolated --check .", tmp_path)
    assert " passed" in output_of(
        "-m pytest -q -p no:cacheprovider new/folder/test_my_own2.py", tmp_path
    )


def test_the_guide_shows_the_skeleton() -> None:
    assert (
        f"```python\n{new_method.fill_template('method.py.txt', {'class_name': 'Mine'})}```"
        in (ROOT / "docs" / "contributing" / "add-a-method.md").read_text()
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
    ("arguments", "code", "message"), BAD_NAMES, ids=[arguments for arguments, *_ in BAD_NAMES]
)
def test_new_method_refuses_in_one_line(
    arguments: str,
    code: int,
    message: str,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install_plugin(site, "outside", "raise RuntimeError('never imported')")
    monkeypatch.chdir(site)
    for name in ("here.py", "test_tested.py"):
        (site / name).write_text("")
    before = set(site.rglob("*"))
    assert exit_code(f"new-method {arguments}") == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert set(site.rglob("*")) == before
