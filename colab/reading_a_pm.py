"""The cells of reading_a_pm.ipynb: what a preference model has learned, and what it has learned
instead."""

CELLS = [
    (
        "markdown",
        """# Reading a preference model

A preference model is one number for a dialogue. Before a policy is trained against it, three questions: does it prefer what
people prefer, does a margin mean what it says, and does it simply like long answers? This notebook asks them of the
preference model of a run.""",
    ),
    "install",
    "model",
    (
        "markdown",
        """`CAI_JAX_RUN` names a run with a stage `pm`. Without it, the quickstart's run is used, and made
as far as needed where it is not there yet.""",
    ),
    "small run",
    (
        "code",
        """from cai_jax import notebook
main.use_compilation_cache()
RUN = os.environ.get("CAI_JAX_RUN", "")
if not RUN:
    RUN = WORKDIR
    if not pathlib.Path(RUN, "pm", "model").exists():
        config.stages = tuple(config.stages[: config.stages.index("pm") + 1])
        pipeline.run(config, RUN, lambda: main.describe_run(config, RUN, ["reading_a_pm.ipynb"]))
run = notebook.Run(RUN)
reward = run.reward_model("@pm")""",
    ),
    (
        "markdown",
        """## Scores

Held-out comparisons that people made: the chosen answer should score higher. "Longer" is the accuracy of always preferring the
longer answer, a baseline that needs no model.""",
    ),
    (
        "code",
        """from cai_jax.data.comparisons import load_comparisons
from cai_jax.core import accuracy

pairs, _ = load_comparisons("embedded:helpful_comparisons", split="heldout", limit=3 * small)
answers = [notebook.answered(pair.dialogue, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
chosen, rejected = reward.score(answers).reshape(-1, 2).T.tolist()
result = accuracy.of_pairs(chosen, rejected, [pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
for name, estimate in (("preference model", result.accuracy), ("longer", result.always_longer)):
    print(f"{name:17} {estimate.value:.2f}  [{estimate.low:.2f}, {estimate.high:.2f}]  n = {estimate.n}")
widest = max(range(len(pairs)), key=lambda i: abs(chosen[i] - rejected[i]))
print("\\nthe widest margin:", pairs[widest].dialogue[-1].text)
print(f"  chosen   {chosen[widest]:+.2f}  {pairs[widest].chosen}")
print(f"  rejected {rejected[widest]:+.2f}  {pairs[widest].rejected}")""",
    ),
    (
        "markdown",
        """## Calibration

σ(difference of two scores) is the model's probability that the first is better. On the dashed line it means what it says. The
scores here are normalised, which stretches or shrinks all differences alike.""",
    ),
    (
        "code",
        """import matplotlib.pyplot as plt
figure, axes = plt.subplots(1, 2, figsize=(9, 3), dpi=70)
bins = result.points
axes[0].plot([0.5, 1], [0.5, 1], "--", color="grey")
axes[0].errorbar([b['predicted'] for b in bins], [b['observed'] for b in bins], marker="o",
                 yerr=[[max(0, b['observed'] - b['low']) for b in bins],
                       [max(0, b['high'] - b['observed']) for b in bins]])
axes[0].set(xlabel="confidence", ylabel="how often right", ylim=(-0.05, 1.05), title=f"calibration error {result.calibration_error:.2f}")

lengths = [len(text.split()) for pair in pairs for text in (pair.chosen, pair.rejected)]
scores = [score for pair in zip(chosen, rejected) for score in pair]
r = notebook.correlation(lengths, scores)
axes[1].scatter(lengths[0::2], scores[0::2], label="chosen")
axes[1].scatter(lengths[1::2], scores[1::2], marker="x", label="rejected")
axes[1].set(xlabel="words", ylabel="score", title=f"length, r = {r:+.2f}")
axes[1].legend()
figure.tight_layout()""",
    ),
    (
        "markdown",
        """## Length bias

A model that only likes length is right where the chosen answer is the longer one and wrong elsewhere. Split the pairs and see.""",
    ),
    (
        "code",
        """from cai_jax.core.intervals import wilson
longer = [len(pair.chosen) > len(pair.rejected) for pair in pairs]
for name, wanted in (("chosen is longer", True), ("chosen is shorter", False)):
    right = [a > b for a, b, is_longer in zip(chosen, rejected, longer) if is_longer == wanted]
    if right:
        estimate = wilson(sum(right), len(right))
        print(f"{name:18} {estimate.value:.2f}  [{estimate.low:.2f}, {estimate.high:.2f}]  n = {estimate.n}")""",
    ),
    (
        "markdown",
        """## Probes

One question, several answers to it. Add your own: which words move the score?""",
    ),
    (
        "code",
        """QUESTION = "How do I remove red wine from a white shirt?"
PROBES = {
    "plain": "Blot it, cover it with salt, and rinse it with cold water.",
    "wordy": "Well, that is a very good question, and there are many things that one could say about it. " * 3,
    "boilerplate": "As an AI language model, I hope this helps! Blot it, salt it, rinse it with cold water.",
    "refusal": "I'm sorry, but I can't help with that.",
    "off topic": "Paris is the capital of France.",
    "empty": "",
}
scored = reward.score([notebook.answered(QUESTION, text) for text in PROBES.values()])
for name, score in sorted(zip(PROBES, scored), key=lambda pair: -pair[1]):
    print(f"{score:+.2f}  {name}")""",
    ),
]
