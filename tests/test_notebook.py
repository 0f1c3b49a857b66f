"""The tutorial's notebook: every cell runs, in a kernel of its own, on the small drawn set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


def text_of(cell: Any) -> str:
    """All that a cell printed and returned as text."""
    parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(parts)


def test_the_committed_notebook_has_no_outputs() -> None:
    """They would hold pictures of the real images."""
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From loading images to a saved model that predicts, as they stand but for the images and the epochs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert 'DATA, EPOCHS = "auto", 3' in first.source
    first.source = first.source.replace('"auto", 3', '"synthetic-mini", 1')
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = "\n".join(map(text_of, code))
    assert "the backbone is unchanged: True" in said and said.count("epoch 1: ") == 3
    assert "mAP after one epoch" in said and "Prediction(" in text_of(code[-1])
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
