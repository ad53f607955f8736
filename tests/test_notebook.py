"""The notebook of examples/: it runs from top to bottom, and its stored outputs are of a run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "compare-methods.ipynb"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_stored_outputs_are_those_of_one_run() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.slow
def test_the_notebook_runs_and_leaves_nothing_behind() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    files = sorted(EXAMPLES.rglob("*"))
    resources = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(notebook, timeout=500, resources=resources).execute()
    table = next(cell for cell in notebook.cells if "build_sections" in cell.source)
    text = table.outputs[0].data["text/plain"]
    assert all(method in text for method in ("rslad", "gacd", "natural"))
    assert sorted(EXAMPLES.rglob("*")) == files
