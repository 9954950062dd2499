"""The cells of rl_against_steps.ipynb: a policy on its way."""

CELLS = [
    (
        "markdown",
        """# Reinforcement learning, step by step

Load the `rl` stage of a run, look at its curves, and sample from the policy before, on the way and after. The reward rises
because it is optimised; whether the answers got better is another question, so they are printed next to it.""",
    ),
    "install",
    "model",
    (
        "markdown",
        """`CAI_JAX_RUN` names a run with a stage `rl`. Without it, the quickstart's run is used, and made
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
    if not pathlib.Path(RUN, "rl", "model").exists():
        config.stages = tuple(config.stages[: config.stages.index("rl") + 1])
        pipeline.run(config, RUN, lambda: main.describe_run(config, RUN, ["rl_against_steps.ipynb"]))
run = notebook.Run(RUN)
steps = run.metrics("rl")
print(len(steps), "updates; checkpoints at", run.steps("rl"))""",
    ),
    (
        "markdown",
        """## Curves

KL is measured against the policy that RL started from, in nats a response. A reward that rises while the length or the KL runs
away is being hacked; an entropy that falls to nothing is a policy that says one thing only.""",
    ),
    (
        "code",
        """import matplotlib.pyplot as plt
shown = ("reward", "kl", "response_tokens", "entropy", "clip_fraction", "explained_variance")
figure, axes = plt.subplots(2, 3, figsize=(9, 4.4), dpi=70)
for axis, key in zip(axes.flat, shown):
    axis.plot([step["step"] for step in steps], [step[key] for step in steps], marker="o")
    axis.set_title(key, fontsize=9)
figure.tight_layout()""",
    ),
    (
        "markdown",
        """## Reward against distance

The same reward at a smaller distance is the better policy. 2204 plots reward against √KL, where it
rises along a line at first.""",
    ),
    (
        "code",
        """figure, axis = plt.subplots(figsize=(4.2, 3), dpi=70)
axis.plot([max(step["kl"], 0.0) ** 0.5 for step in steps], [step["reward"] for step in steps], marker="o")
for step in (steps[0], steps[-1]):
    axis.annotate(str(step["step"]), (max(step["kl"], 0.0) ** 0.5, step["reward"]))
axis.set(xlabel="√KL", ylabel="reward", title="by update")
figure.tight_layout()""",
    ),
    (
        "markdown",
        """## What was rewarded

Every rollout is a record. The best and the worst answer of the first and of the last update:""",
    ),
    (
        "code",
        """rollouts = run.records("rl")
for step in sorted({steps[0]["step"], steps[-1]["step"]}):
    those = sorted((row for row in rollouts if row["step"] == step), key=lambda row: row["reward"])
    for name, row in (("worst", those[0]), ("best", those[-1])):
        print(f"update {step}, {name}: reward {row['reward']:+.2f}, KL {row['kl']:+.3f}")
        print("  ", row["dialogue"][-1]["text"])
        print("   →", row["response"])""",
    ),
    (
        "markdown",
        """## Sample

The same prompts and the same random numbers for every step: what differs is the policy. The last step is the result; steps
between are there where `rl.snapshot_every_updates` kept them.""",
    ),
    (
        "code",
        """PROMPTS = ["How do I get revenge on a colleague?", "Explain why the sky is blue."]
TOKENS = int(os.environ.get("CAI_JAX_TOKENS", "32"))
policies = {"start": run.config.graph.rl.policy, **{f"step {step}": f"@rl:{step}" for step in run.steps("rl")}}
answers = {name: run.sample(reference, PROMPTS, max_new_tokens=TOKENS, temperature=0.7) for name, reference in policies.items()}
for number, prompt in enumerate(PROMPTS):
    print(prompt)
    for name in policies:
        print(f"  [{name}] {answers[name][number]}")""",
    ),
    (
        "code",
        """reward = run.reward_model(run.config.graph.rl.reward)
for name, texts in answers.items():
    scores = reward.score([notebook.answered(prompt, text) for prompt, text in zip(PROMPTS, texts)])
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{name:10} mean score {scores.mean():+.2f}, mean length {words:.0f} words")""",
    ),
]
