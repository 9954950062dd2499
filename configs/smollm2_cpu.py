"""The method on SmolLM2-135M-Instruct, on two CPU cores, in about a quarter of an hour (`make
demo`).

The sizes follow from a budget: two cores decode about 150 tokens a second and train about 150, so
every stage here gets one to four minutes. It shows that everything runs and what the records look
like; 32 prompts and a 135M critic cannot show that the method helps, and the report says so with
intervals. For evidence see results/.

The paper samples at temperature 1. A model this small rambles there, so texts are drawn at 0.7, and
PPO's policy is the distribution at 0.7 in sampler and learner alike. It trains adapters, whose rate
may be high: with all weights at 2e-6 the policy did not move (clip fraction 0.000, reward -0.51 →
-0.87 in 10 updates of 16).
"""

from configs import default


def get_config():
    config = default.base_config()
    calm = {"temperature": 0.7, "top_p": 0.95}
    short = {
        "max_length": 128,
        "save_every_steps": 1000,
    }  # minutes each: what a kill costs is less than saves in between
    graph = {
        "respond": default.respond(limit=32, max_new_tokens=48, **calm),
        "respond_helpful": default.respond(
            source="topic:helpful", limit=16, max_new_tokens=48, **calm
        ),
        "revise": default.revise(
            num_rounds=2, num_few_shot=1, max_critique_tokens=48, max_revision_tokens=48, **calm
        ),
        "sl": default.sl(
            **default.optimisation(learning_rate=2e-5, batch_size=8)
            | short
            | {"num_microbatches": 8}
        ),
        "compare": default.compare(offset=32, limit=32, max_new_tokens=40, **calm),
        "feedback": default.feedback(num_few_shot=2, num_headers=4, both_orders=True),
        "pm": default.pm(
            **default.optimisation(learning_rate=2e-5, batch_size=15)
            | short
            | {"num_microbatches": 15}
        ),
        "rl": default.rl(
            prompts={"offset": 64},
            adapters=default.adapters(16, 32.0),
            value_model="shared",
            num_updates=10,
            rollouts_per_update=32,
            num_epochs=2,
            num_minibatches=2,
            num_microbatches=2,
            **dict.fromkeys(("learning_rate", "value_learning_rate"), 1e-3),
            warmup_updates=1,
            kl_coefficient=0.01,
            max_prompt_tokens=64,
            max_new_tokens=32,
            save_every_updates=5,
            missing_eos_penalty=0.5,
            temperature=0.7,
        ),
        "evaluate": default.evaluate(
            {"initial": "helpful", "sl": "@sl", "rl": "@rl"},
            "revise",
            max_new_tokens=48,
            num_choices=48,
            num_few_shot=2,
            **calm,
            prompts_red_team={"limit": 24},
            prompts_helpful={"limit": 12},
        ),
        "report": default.report(),
    }
    config.sampling.max_length = 1024
    default.set_graph(config, graph)
    return config
