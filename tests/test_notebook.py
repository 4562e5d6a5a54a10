"""Notebooks in a real kernel: a network shows itself as a drawing, and the tutorial prints what its page shows."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import tnalgebra
from docs.notebook import notebook_of
from tests.documents import ROOT, agree


@pytest.fixture
def kernel_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of this very interpreter, with folders of its own: nothing that is installed for Jupyter is asked."""
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(tnalgebra.__file__).parents[1]))
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "this interpreter",
        "language": "python",
    }
    folder = tmp_path / "kernels" / "this-interpreter"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder.name


@pytest.mark.slow
def test_network_is_shown_as_a_drawing(kernel_name: str, tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell('import tnalgebra as tn\ntn.parse("A[out:5 r] B[r in:3]")')  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name=kernel_name, timeout=300, resources=where).execute()
    (shown,) = notebook.cells[0].outputs
    assert shown.output_type == "execute_result"
    assert shown.data["text/plain"] == "Network('A[out:5 r] B[r in:3]')"
    root = ElementTree.fromstring(shown.data["image/svg+xml"])
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert texts == {"A", "B", "out:5", "r", "in:3"}


def test_the_notebook_of_the_tutorial_is_the_generated_one() -> None:
    text = (ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8")
    assert text == notebook_of(ROOT / "docs" / "tutorial.md")
    nbformat.validate(nbformat.reads(text, as_version=4))  # type: ignore[no-untyped-call]


@pytest.mark.slow
def test_the_tutorial_prints_in_a_notebook_what_its_page_shows(kernel_name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    shown = [_printed(cell) for cell in notebook.cells]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name=kernel_name, timeout=300, resources=where).execute()
    for expected, cell in zip(shown, notebook.cells, strict=True):
        assert agree(expected, _printed(cell)), cell.source


def _printed(cell: nbformat.NotebookNode) -> str:
    outputs = cell.get("outputs", [])
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
