"""The run of `benchmarks.learning`: one rl stage on SmolLM2 with adapters.

    python -m cai_jax.main --workdir=DIR \
        --config=benchmarks/learning_config.py:reward=question_mark,method=ppo,seed=0

`split` are the parts of the prompts: what is reported has seen 0-7/10, settings were chosen on
8-9/10. `size=quick` is a random model of two layers for a few seconds.
"""

import os

from configs import default

METHODS = {
    "ppo": {"value_model": "shared"},
    "grpo": {"algorithm": "grpo", "group_size": 4},
    "rloo": {"algorithm": "rloo", "group_size": 4},
}
MODEL = os.path.abspath("models/smollm2-135m-instruct")
TINY = "random:" + os.path.abspath("configs/models/tiny")


def get_config(arguments="reward=question_mark,method=ppo"):
    given = dict(item.split("=") for item in arguments.split(","))
    quick = given.get("size") == "quick"
    config = default.base_config()
    config.seed = int(given.get("seed", 0))
    config.models.base = TINY if quick else MODEL
    config.sampling.max_length = 512
    fields = {
        "policy": "base",
        "reward": f"python:benchmarks.answer_rewards.{given['reward']}",
        "prompts": default.prompts("topic:helpful", given.get("split", "0-7/10")),
        "adapters": default.adapters(16, 32.0),
        "num_updates": 24,
        "rollouts_per_update": 32,
        "num_epochs": 2,
        "num_minibatches": 2,
        "learning_rate": 1e-3,
        "value_learning_rate": 1e-3,
        "warmup_updates": 1,
        "kl_coefficient": 0.01,
        "temperature": 0.7,
        "max_prompt_tokens": 64,
        "max_new_tokens": 32,
        "save_every_updates": 4,
    }
    if quick:
        fields |= {"num_updates": 2, "rollouts_per_update": 8, "max_new_tokens": 8}
        fields["max_prompt_tokens"] = 200
    default.set_graph(config, {"rl": default.rl(**fields | METHODS[given["method"]])})
    return config
