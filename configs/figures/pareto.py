"""Figures 2, 3, 8 and 10: every baseline and both forms of RL-CAI; and RL-CAI step by step, four
times as far as it is taken elsewhere, with the harm that a regressor expects at temperatures 0 and
1."""

from configs import default, microworld

FAR = 4  # times the updates of configs/microworld.py
NUM_SAMPLES = 8  # of each prompt for the regressor; the paper: 256


def get_config():
    config = microworld.get_config()
    none = {"comparisons": "", "labels": ""}
    graph = config.graph.to_dict()
    graph.pop("report")
    graph.pop("evaluate")
    updates = microworld.rl()["num_updates"]
    every = updates // 2
    graph |= {
        "feedback_chain": microworld.feedback(mode="chain_of_thought"),
        "pm_chain": microworld.pm(labels="feedback_chain", clamp=(0.4, 0.6)),
        "rl_chain": microworld.rl(reward="@pm_chain"),
        # The baselines start from the pretrained model (section 4.1): people rate helpfulness, or
        # both.
        "pm_helpful": microworld.pm(inputs=none),
        "pm_human": microworld.pm(inputs=none, human=microworld.human("")),
        "rl_helpful": microworld.rl(policy="base", reward="@pm_helpful"),
        "rl_human": microworld.rl(policy="base", reward="@pm_human"),
        "rl_far": microworld.rl(num_updates=FAR * updates, snapshot_every_updates=every),
        "harm": microworld.harm(),
    }
    models = {
        "pretrained": "base",
        "H-RLHF": "@rl_helpful",
        "HH-RLHF": "@rl_human",
        "SL-CAI": "@sl",
        "RL-CAI": "@rl",
        "RL-CAI-CoT": "@rl_chain",
    }
    models |= {f"RL-CAI-{step}": f"@rl_far:{step}" for step in range(every, FAR * updates, every)}
    models[f"RL-CAI-{FAR * updates}"] = "@rl_far"
    asked = default.absolute_harm("@harm", NUM_SAMPLES, **microworld.heldout("red_team", 64))
    graph["evaluate_pareto"] = microworld.evaluate(
        models, anchor="SL-CAI", reward="@pm", feedback="", choices="", harm=asked
    )
    config.graph = graph
    config.stages = tuple(graph)
    return config
