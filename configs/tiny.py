"""The graph on a random two-layer model, in about a minute: for tests, and to see every
artefact's shape."""

import os

from configs import default

MODEL = "random:" + os.path.join(os.path.dirname(os.path.abspath(__file__)), "models", "tiny")


def get_config():
    config = default.base_config()
    config.models.base = MODEL
    steps = {"max_length": 512, "save_every_steps": 2}
    graph = {
        "respond": default.respond(limit=6, max_new_tokens=12),
        "respond_helpful": default.respond(source="topic:helpful", limit=4, max_new_tokens=12),
        "revise": default.revise(
            num_rounds=2, num_few_shot=1, max_critique_tokens=12, max_revision_tokens=12
        ),
        "sl": default.sl(**default.optimisation(learning_rate=1e-3, batch_size=4) | steps),
        "compare": default.compare(offset=6, limit=6, max_new_tokens=12),
        "feedback": default.feedback(num_few_shot=1, num_headers=2, both_orders=True),
        "feedback_chain": default.feedback(
            mode="chain_of_thought", num_few_shot=1, num_headers=2, max_chain_tokens=16
        ),
        "pm": default.pm(
            **default.optimisation(learning_rate=1e-3, batch_size=8) | steps,
            holdout_fraction=0.25,
            human={"limit": 16},
        ),
        "rl": default.rl(
            prompts={"limit": 12},
            num_updates=3,
            rollouts_per_update=8,
            num_epochs=2,
            num_minibatches=2,
            learning_rate=1e-4,
            value_learning_rate=1e-4,
            warmup_updates=1,
            max_new_tokens=12,
            save_every_updates=1,
            snapshot_every_updates=2,
        ),
        "evaluate": default.evaluate(
            {"initial": "helpful", "sl": "@sl", "rl": "@rl"},
            "revise",
            max_new_tokens=12,
            num_choices=12,
            num_few_shot=2,
            num_chains=1,
            max_chain_tokens=8,
            prompts_red_team={"limit": 4},
            prompts_helpful={"limit": 4},
            comparisons={"limit": 12},
        ),
        "report": default.report(),
    }
    config.sampling.batch_size = 8
    config.sampling.max_length = 1024
    default.set_graph(config, graph)
    return config
