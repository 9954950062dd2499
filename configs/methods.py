"""All methods on one set of labels in the microworld: docs/methods.md says when to use which.

    python -m cai_jax.main --config=configs/methods.py --workdir=runs/methods

Finetuning on revisions, PPO, GRPO, RLOO and the judge itself as a reward, DPO on labels and
on revisions, best of 8. What is trained on answers of `sl` sees as many of them, NUM_ANSWERS, of at
most 36 tokens. Afterwards `python -m cai_jax.microworld.measure RUN` says by the oracle what the
answers to held-out requests are; `--config.seed` draws another run.
"""

from configs import default, microworld

GROUP, NUM_UPDATES = 8, 8
# What `evaluate` asks, for the answers that the best is taken of.
HELDOUT = "+".join(
    str(microworld.DATA / f"{name}.jsonl")
    for name in ("red_team", "helpful", "look_alike", "mixed")
)
NUM_ANSWERS = 192 * NUM_UPDATES  # of rl's updates, and of `compare`, in threes


def dpo(*inputs, **fields):
    """DPO with the microworld's optimiser; no comparisons of people, which `pm` alone has."""
    optimiser = microworld.steps(1e-4, 64, num_epochs=3)
    given = {"human": default.human_pairs("", ""), "beta": 0.1, **optimiser, **fields}
    return default.dpo(*inputs, **given)


def rl(**fields):
    return microworld.rl(num_updates=NUM_UPDATES, **fields)


def get_config():
    config = microworld.base_config()
    grouped = {"group_size": GROUP}
    graph = {
        "respond": microworld.respond(),
        "respond_helpful": microworld.respond_helpful(),
        "revise": microworld.revise(),
        "sl": microworld.sl(),
        "compare": microworld.compare(limit=NUM_ANSWERS // 3),
        "feedback": microworld.feedback(),
        "pm": microworld.pm(),
        "ppo": rl(),
        "grpo": rl(algorithm="grpo", **grouped),
        "rloo": rl(algorithm="rloo", **grouped),
        "judged": rl(algorithm="rloo", reward="@feedback", **grouped),
        "dpo": dpo("compare", "feedback"),
        "dpo_revisions": dpo("", "", "revise"),
        "respond_best": microworld.respond(
            model="@sl", source=HELDOUT, split="heldout", limit=None, num_samples=GROUP
        ),
        "best_of": default.best_of("respond_best"),
    }
    names = ("sl", "ppo", "grpo", "rloo", "judged", "dpo", "dpo_revisions", "best_of")
    models = {"initial": "helpful", **{name: f"@{name}" for name in names}}
    graph |= {"evaluate": microworld.evaluate(models, "revise"), "report": default.report()}
    default.set_graph(config, graph)
    return config
