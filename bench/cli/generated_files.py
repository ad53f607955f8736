"""Write every file that is made from code or records, in the folder of a clone.

python -m bench.cli.generated_files
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.cli import reference_pages
from bench.reference import gacd_page, methods_page, results_page, transfer_page

README = Path("README.md")
# What the README takes over, by the name in the lines that enclose it.
README_PARTS = {
    "results": results_page.render_readme_table,
    "methods": methods_page.render_readme_table,
}


def render_readme() -> str:
    """Return the README with its generated parts made again. Raise ValueError if it lacks one."""
    text = README.read_text(encoding="utf-8")
    for name, render in README_PARTS.items():
        lines = [f"<!-- {name}: {edge} -->\n" for edge in ("begin", "end")]
        before, begin, rest = text.partition(lines[0])
        _, end, after = rest.partition(lines[1])
        if not begin or not end:
            raise ValueError(f"{README} lacks the lines {' and '.join(map(str.strip, lines))}")
        text = f"{before}{begin}{render()}{end}{after}"
    return text


# By path in the clone: an installed package has no docs beside it.
FILES: dict[str, Callable[[], str]] = {
    "README.md": render_readme,
    "bench/reference/methods.json": methods_page.render_json,
    "docs/lab/gacd.md": gacd_page.render_page,
    "docs/lab/results.md": results_page.render_page,
    "docs/lab/tables.md": results_page.render_all_tables,
    "docs/lab/transfer.md": transfer_page.render_page,
    "docs/reference/command-line.md": reference_pages.render_command_line,
    "docs/reference/configuration.md": reference_pages.render_configuration,
    "docs/reference/methods.md": methods_page.render_page,
}


def write_charts() -> None:
    """Write the charts of the results, and remove those of tables that are no more."""
    charts = dict(results_page.render_charts())
    results_page.CHARTS.mkdir(parents=True, exist_ok=True)
    for path, content in charts.items():
        path.write_text(content, encoding="utf-8")
    for path in set(results_page.CHARTS.iterdir()) - charts.keys():
        path.unlink()


def main() -> None:
    """Write the files. Raises SystemExit outside a clone, or if the README lacks a part."""
    if not README.exists() or not results_page.RECORDS.is_dir():
        raise SystemExit("no clone here: run this in the folder of one")
    try:
        for path, render in FILES.items():
            Path(path).write_text(render(), encoding="utf-8")
        write_charts()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
