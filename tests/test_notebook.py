"""The notebook of examples/: it runs from top to bottom, and its stored outputs are of a run."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "compare-methods.ipynb"


def code_blocks(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [block for block in notebook.cells if block.cell_type == "code"]


def test_the_stored_outputs_are_those_of_one_run() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    blocks = code_blocks(notebook)
    assert [block.execution_count for block in blocks] == [*range(1, len(blocks) + 1)]
    outputs = [output for block in blocks for output in block.outputs]
    # Only the last line of a block says something: what it calls prints nothing.
    assert [len(block.outputs) for block in blocks] == [0, 1, 1, 1, 1, 1, 1, 0]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert NOTEBOOK.stat().st_size < 100_000


@pytest.mark.slow
def test_the_notebook_runs_and_leaves_nothing_behind() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for block in code_blocks(notebook):
        block.outputs = []
    files = sorted(EXAMPLES.rglob("*"))
    resources = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(notebook, timeout=500, resources=resources).execute()
    table = next(block for block in code_blocks(notebook) if "bench.leaderboard" in block.source)
    text = table.outputs[0].data["text/plain"]
    assert all(method in text for method in ("rslad", "gacd", "natural"))
    assert sorted(EXAMPLES.rglob("*")) == files
