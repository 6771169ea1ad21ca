"""The examples run with a tiny budget; those that a tutorial names run after it, in `test_tutorials`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tutorial_desk import smaller

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
LIMIT = 200_000  # bytes of a notebook with its outputs


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = smaller(cell.source)
    monkeypatch.setenv("IPYTHONDIR", str(desk / "ipython"))
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(desk)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert re.search(r"AP \d\.\d+, AP75 \d\.\d+, Spearman", said)
    assert "(1, 13, 84)" in said and "placement: sigma_left,sigma_top,sigma_right,sigma_bottom" in said
    assert (desk / "runs" / "train" / "weights" / "best.onnx").is_file()


def test_the_notebook_is_kept_with_the_small_outputs_of_one_run_from_top_to_bottom() -> None:
    assert NOTEBOOK.stat().st_size < LIMIT
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    said = NOTEBOOK.read_text(encoding="utf-8")
    assert str(Path.home()) not in said and os.sep.join(("", "tmp", "")) not in said
