"""That the notebooks run from top to bottom, show what they promise, and are kept without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import run_python
from pages import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST = 20
"""Cells: to be read in a few minutes."""

EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute(cwd=sys.argv[2])
nbformat.write(notebook, sys.argv[2] + "/out.ipynb")
"""


def code_cells(path: Path) -> list[dict[str, Any]]:
    """Its cells of code."""
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_is_one_for_each_front_door() -> None:
    """Numbered in the order in which they are read."""
    names = [path.stem for path in NOTEBOOKS]

    assert names == ["01_quickstart", "02_keras", "03_lightning", "04_your_own_loop"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_short_and_without_outputs(path: Path) -> None:
    """What it shows is made when it is run; a diff of it is a diff of what somebody wrote."""
    cells = code_cells(path)

    assert len(json.loads(path.read_text("utf-8"))["cells"]) <= LONGEST
    assert [cell["id"] for cell in cells if cell["outputs"] or cell["execution_count"] is not None] == []


@pytest.mark.framework
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_a_curve_and_predictions(path: Path, tmp_path: Path) -> None:
    """In a kernel of its own; a cell that raises would end it."""
    run_python(EXECUTE, str(path), str(tmp_path), timeout=280)
    outputs = [output for cell in code_cells(tmp_path / "out.ipynb") for output in cell["outputs"]]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    said = "".join("".join(output.get("text", "")) for output in outputs if output.get("name") == "stderr")

    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert len(figures) >= 2
    # One line at the start and one at the end: a warning of fitwire's would be a third.
    assert [line.split(" · ")[-1] for line in said.splitlines() if line.startswith("fitwire:")][:1] == [
        "watch it with fitwire watch"
    ]
    assert said.count("fitwire:") == 2, said
