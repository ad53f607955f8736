"""The architecture: layers, circles, full folders, long functions, names of a private dialect."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import bench

ROOT = Path(bench.__file__).parents[1]
PACKAGES = ("bench", "methods", "attacks", "leaderboards")
SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]

# Subpackages of a package, the lowest first. Each uses only what lies before it.
LAYERS = {
    "bench": (
        "system",
        "protocol",
        "datasets",
        "models",
        "training",
        "teachers",
        "tracking",
        "execution",
        "tuning",
        "records",
        "analysis",
        "reference",
        "api",
        "cli",
    ),
    "leaderboards": ("schema", "read", "stats", "tables", "render"),
}
MOST_ARROWS = 72
MOST_MODULES = 14
MOST_LINES = 40
MOST_NESTING = 3

# Words that say nothing of what they name, or that only this project used.
RIDDLES = {
    *("found", "known", "given", "said", "told", "place", "seen", "taught", "anew"),
    *("far", "near", "stands", "standing", "broken", "leaves", "cell", "workshop"),
    *("led", "carry_out", "one_by_one", "settled", "images_alone", "turned"),
    *("Watch", "Apart", "AllBroken", "judge", "PAYS", "NARROW", "STUCK", "LONGER", "LATE"),
}
# Words that are no names of functions: a verb or a plain noun says more.
UNCLEAR_FUNCTIONS = {
    *("clean", "at", "trust", "scale", "groups", "requires", "see", "guided", "soft", "stages"),
    *("quick", "grid", "execute", "attempt"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported_modules(module: str) -> frozenset[str]:
    """Return the modules of this project that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree_of(MODULES[module])):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in MODULES else node.module)
    return frozenset(names & MODULES.keys()) - {module}


def subpackage_of(module: str) -> str:
    """Return the folder of a package that a module lies in, "" for the package itself."""
    package, _, path = module.partition(".")
    subpackage = path.partition(".")[0]
    return subpackage if (ROOT / package / subpackage).is_dir() else ""


def subpackage_arrows(package: str) -> Iterator[tuple[str, str, str]]:
    """Yield (importer, imported, "module imports module") for imports between subpackages."""
    for module in MODULES:
        for imported in imported_modules(module):
            subpackages = subpackage_of(module), subpackage_of(imported)
            same_package = module.split(".")[0] == imported.split(".")[0] == package
            if same_package and all(subpackages) and subpackages[0] != subpackages[1]:
                yield *subpackages, f"{module} imports {imported}"


@pytest.mark.parametrize("package", LAYERS)
def test_each_subpackage_uses_only_what_lies_below(package: str) -> None:
    layers = LAYERS[package]
    subpackages = {
        path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()
    }
    assert subpackages == set(layers)
    upward = []
    for subpackage, imported, arrow in subpackage_arrows(package):
        if layers.index(imported) > layers.index(subpackage):
            upward.append(arrow)
    assert upward == []


def test_an_import_upward_names_both_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "bench", tuple(reversed(LAYERS["bench"])))
    with pytest.raises(AssertionError, match=r"bench\.\S+ imports bench\.\S+"):
        test_each_subpackage_uses_only_what_lies_below("bench")


def test_few_arrows_between_subpackages() -> None:
    arrows = {(subpackage, imported) for subpackage, imported, _ in subpackage_arrows("bench")}
    assert len(arrows) < MOST_ARROWS


def test_nothing_imports_in_a_circle() -> None:
    assert circle_in({module: imported_modules(module) for module in MODULES}) == []


def test_a_circle_is_noticed() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert circle_in(graph) == ["a", "b", "c"]


def circle_in(graph: dict[str, frozenset[str]] | dict[str, set[str]]) -> list[str]:
    """Return the modules of circles: those that remain when ends and beginnings are taken off."""
    remaining = {module: set(imported) for module, imported in graph.items()}
    while remaining:
        imported = set().union(*remaining.values())
        ends = {name for name, targets in remaining.items() if not targets & remaining.keys()}
        ends |= remaining.keys() - imported
        if not ends:
            break
        remaining = {
            name: targets & remaining.keys() - ends
            for name, targets in remaining.items()
            if name not in ends
        }
    return sorted(remaining)


def test_no_folder_has_too_many_modules() -> None:
    """Plugins aside: each method and each command is a file that declares one."""
    counts: dict[str, int] = {}
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if "\nMETHOD = " not in text and "\nCOMMAND = " not in text:
            folder = str(path.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def nesting(node: ast.AST) -> int:
    """Return how many blocks lie inside each other; `elif` does not count as one more."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        depth = nesting(child)
        blocks = ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        if isinstance(child, blocks) and not is_elif:
            depth += 1
        deepest = max(deepest, depth)
    return deepest


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_flat(path: Path) -> None:
    for function in functions(path):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        assert lines <= MOST_LINES, f"{function.name} has {lines} lines"
        depth = nesting(function)
        assert depth <= MOST_NESTING, f"{function.name} is nested {depth} deep"


def declared_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names of classes, functions, parameters, fields and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_those_of_the_field(path: Path) -> None:
    assert path.stem not in RIDDLES
    assert sorted(RIDDLES.intersection(declared_names(tree_of(path)))) == []
    names = {function.name for function in functions(path)}
    assert sorted(UNCLEAR_FUNCTIONS & names) == []


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("*.py")), ids=lambda p: p.name)
def test_tests_use_the_same_names(path: Path) -> None:
    assert sorted(RIDDLES.intersection(declared_names(tree_of(path)))) == []
