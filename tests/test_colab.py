"""The quickstart notebook runs from its first cell to its last, on the tiny model with very short settings."""

import pathlib
import sys

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "colab"))
import make_notebooks  # noqa: E402


def test_the_saved_notebook_is_the_reviewed_one():
    saved = nbformat.read(ROOT / "colab" / "quickstart.ipynb", as_version=4)
    assert [(cell.cell_type, cell.source) for cell in saved.cells] == make_notebooks.QUICKSTART


def test_quickstart_runs(tmp_path, monkeypatch, tiny_model):
    monkeypatch.setenv("CAI_JAX_MODEL", f"random:{tiny_model}")
    monkeypatch.setenv("CAI_JAX_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("CAI_JAX_ROWS", "4")
    book = make_notebooks.notebook(make_notebooks.QUICKSTART)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT / "colab")}}).execute()
    texts = "".join(output.get("text", "") for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "CRITIQUE" in texts and "p(first response)" in texts and "report.html written" in texts
