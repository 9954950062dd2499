"""The cells of quickstart.ipynb: the method from end to end, very small."""

CELLS = [
    (
        "markdown",
        """# Constitutional AI on a small real model

The method of [Bai et al. 2022](https://arxiv.org/abs/2212.08073) from end to end on SmolLM2-135M-Instruct: red-team answers are
criticised and revised by principles, a model is finetuned on the revisions, pairs of its answers are judged by the
principles, a preference model learns the judgements, and PPO trains against it. Settings here are very small, so that it
ends in minutes on any runtime. **A 135M model is a poor critic**: read the texts, and believe no difference whose interval
covers zero.""",
    ),
    "install",
    "model",
    (
        "markdown",
        """## The configuration

Configuration is code. This takes the demo's graph of stages and makes every stage smaller.""",
    ),
    "small run",
    (
        "code",
        """print(config.stages)
main.use_compilation_cache()
rows = pipeline.run(config, WORKDIR, lambda: main.describe_run(config, WORKDIR, ["quickstart.ipynb"]))
print(pipeline.table(rows))""",
    ),
    (
        "markdown",
        """## Read what happened

Every stage wrote records, plain JSON lines. A critique and its revision:""",
    ),
    (
        "code",
        """from cai_jax import notebook
run = notebook.Run(WORKDIR)
for row in run.records("revise")[:2]:
    print("PROMPT    ", row["dialogue"][-1]["text"])
    print("INITIAL   ", row["initial"])
    for number, turn in enumerate(row["rounds"], 1):
        print(f"PRINCIPLE {number}", turn["principle_id"])
        print("CRITIQUE  ", turn["critique"])
        print("REVISION  ", turn["revision"])
    print("-" * 80)""",
    ),
    (
        "markdown",
        """A pair and its label: the log-probabilities of the two answer strings, in both orders of the options. A judge
that follows the content gives the same preference in both; a weak one prefers a letter.""",
    ),
    (
        "code",
        """from cai_jax.core import labels
for row in run.records("feedback")[:4]:
    first = [labels.probability_first(entry) for entry in row["logprobs"]]
    print(row["principle_id"], [f"{entry['order']}: {p:.2f}" for entry, p in zip(row["logprobs"], first)],
          "→ p(first response) =", round(labels.target([row]), 3))""",
    ),
    (
        "code",
        """import matplotlib.pyplot as plt
steps = run.metrics("rl")
shown = ("reward", "kl", "response_tokens")
figure, axes = plt.subplots(1, len(shown), figsize=(9, 2.4), dpi=70)
for axis, key in zip(axes, shown):
    axis.plot([step["step"] for step in steps], [step[key] for step in steps], marker="o")
    axis.set_title(key); axis.set_xlabel("update")
figure.tight_layout()""",
    ),
    (
        "markdown",
        """The report holds all of it, with pictures and intervals: open `report/report.html` in the run directory. The
other notebooks go on from this run: `reading_a_pm.ipynb`, `rl_against_steps.ipynb`.""",
    ),
    (
        "code",
        """report = pathlib.Path(WORKDIR, "report", "report.html")
print(report.name, "written:", report.stat().st_size // 1024, "kB")""",
    ),
]
