"""Pages and files that are made from code and records are up to date; the README stays short."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from bench.cli import generated_files
from bench.reference import results_page

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", generated_files.FILES)
def test_a_generated_file_is_current(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text == generated_files.FILES[path](), "python -m bench.cli.generated_files"


def test_the_charts_are_current_and_all_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    charts = dict(results_page.render_charts())
    kept = {path: path.read_text(encoding="utf-8") for path in results_page.CHARTS.iterdir()}
    assert kept == charts, "python -m bench.cli.generated_files"
    page = Path("docs/lab/results.md").read_text(encoding="utf-8")
    assert all(f"(../images/results/{path.name})" in page for path in charts)


def test_a_readme_without_the_markers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# A title\n<!-- results: end -->\n")
    with pytest.raises(ValueError, match=r"README\.md lacks the lines <!-- results: begin"):
        generated_files.render_readme()


def test_no_clone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no clone here"):
        generated_files.main()


def test_people_finish_the_readme() -> None:
    assert len(README.split()) <= 1100
    assert len(README.splitlines()) <= 130


def test_no_command_of_the_readme_is_cut_off() -> None:
    blocks = CODE_BLOCK.findall(README)
    assert blocks
    for line in "".join(blocks).splitlines():
        assert len(line) <= 88, line


def test_the_badges_say_what_the_package_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest, above = re.findall(r"3\.(\d+)", project["requires-python"])
    python = (ROOT / "docs" / "images" / "badge-python.svg").read_text()
    assert f"3.{lowest} - 3.{int(above) - 1}" in python
    assert project["license"] in (ROOT / "docs" / "images" / "badge-licence.svg").read_text()


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_of_pages_outside_docs_lead_somewhere(path: Path) -> None:
    """Those inside are checked by `tox -e docs`."""
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    for target in filter(None, (name or source for name, source in targets)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        page = path.parent / file if file else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
            assert anchor in slugs, target
