"""The notebooks run from their first cell to their last, on the tiny model with very short
settings."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import nbformat
import pytest

from tests.chaos import harness

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "colab"))
import make_notebooks  # noqa: E402

# Forgets everything but where the modules are: every notebook must import and define what it uses.
FORGET = ("code", 'get_ipython().run_line_magic("reset", "-sf")')


@pytest.fixture
def short(monkeypatch, tmp_path, tiny_model):
    """The tiny model, few rows, few tokens; and the programs that other tests have compiled."""
    for name, value in harness.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CAI_JAX_MODEL", f"random:{tiny_model}")
    monkeypatch.setenv("CAI_JAX_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("CAI_JAX_ROWS", "4")
    monkeypatch.setenv("CAI_JAX_TOKENS", "6")


PICTURES = {"quickstart": 1, "constitution_playground": 0, "reading_a_pm": 1, "rl_against_steps": 2}


def printed(book) -> str:
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def pictures(book) -> int:
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


@pytest.mark.parametrize("name", make_notebooks.NAMES)
def test_the_saved_notebook_is_the_reviewed_one(name):
    path = ROOT / "colab" / f"{name}.ipynb"
    saved = nbformat.read(path, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in saved.cells] == make_notebooks.cells(name)
    assert saved.cells[1].source == make_notebooks.SHARED["install"][1]
    assert path.stat().st_size < 400_000
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), (
        "saved without having been run: make_notebooks.py --execute"
    )
    assert len(printed(saved)) > 500 and not any(
        output.output_type == "error" for cell in code for output in cell.outputs
    )
    assert pictures(saved) == PICTURES[name]


@pytest.mark.long
def test_quickstart_runs(short):
    book = make_notebooks.execute(
        make_notebooks.notebook(make_notebooks.cells("quickstart")), timeout=300
    )
    text = printed(book)
    assert (
        "CRITIQUE" in text
        and "p(first response)" in text
        and "report.html written" in text
        and pictures(book) == 1
    )


def changed_at(folder: pathlib.Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_other_notebooks_run(finished, short, monkeypatch, tmp_path):
    """One after the other in one kernel, which forgets between them: JAX starts once."""
    run = (
        tmp_path / "finished"
    )  # a copy: other tests, at the same moment, start commands in the run itself
    shutil.copytree(finished[0], run)
    monkeypatch.setenv("CAI_JAX_RUN", str(run))
    before = changed_at(run)
    names = make_notebooks.NAMES[1:]
    book = make_notebooks.notebook(
        [cell for name in names for cell in (*make_notebooks.cells(name), FORGET)]
    )
    text = printed(make_notebooks.execute(book, timeout=300))
    assert "[mine] kind_and_short" in text and "ab 0." in text  # playground
    assert "preference model" in text and "boilerplate" in text  # reading a PM
    assert (
        "[step 3]" in text and "update 3, best" in text and pictures(book) == 3
    )  # RL against steps
    after = changed_at(run)
    touched = sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
    assert not touched, "reading a run changed it"


def first_cell(folder, **environment):
    """The first cell as a program of its own in `folder`, which prints where the code was taken
    from."""
    program = make_notebooks.SHARED["install"][1] + (
        "\nimport cai_jax; from configs import tiny; print(cai_jax.__file__, tiny.__file__)"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=kept | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("where", ["clone", "notebooks' folder", "installed"])
def test_the_first_cell_knows_where_the_code_is(where, tmp_path):
    if where == "installed":
        done = first_cell(tmp_path, PYTHONPATH=str(ROOT))
    else:
        done = first_cell(ROOT if where == "clone" else ROOT / "colab")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == [
        str(ROOT / "cai_jax" / "__init__.py"), str(ROOT / "configs" / "tiny.py"),
    ]  # fmt: skip


def test_without_the_code_the_first_cell_says_which_line_to_change(tmp_path):
    if importlib.util.find_spec("cai_jax").origin != str(ROOT / "cai_jax" / "__init__.py"):
        pytest.skip("cai_jax is installed here")
    done = first_cell(tmp_path, CAI_JAX_REPOSITORY="")
    assert done.returncode == 1 and done.stderr == (
        "cai_jax is not here: set ADDRESS in the first lines of this cell and run it again\n"
    )
