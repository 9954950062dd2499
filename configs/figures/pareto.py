"""Figures 2, 3, 8 and 10: every baseline and both forms of RL-CAI, and the way of RL-CAI step by step."""

from configs import microworld


def get_config():
    config = microworld.get_config()
    none = {"comparisons": "", "labels": ""}
    graph = config.graph.to_dict()
    graph.pop("report")
    graph.pop("evaluate")
    graph |= {
        "feedback_chain": microworld.feedback(mode="chain_of_thought"),
        "pm_chain": microworld.pm(labels="feedback_chain", clamp=(0.4, 0.6)),
        "rl_chain": microworld.rl(reward="@pm_chain"),
        # The baselines start from the pretrained model (section 4.1): people rate helpfulness, or both.
        "pm_helpful": microworld.pm(inputs=none),
        "pm_human": microworld.pm(inputs=none, human=microworld.human("")),
        "rl_helpful": microworld.rl(policy="base", reward="@pm_helpful"),
        "rl_human": microworld.rl(policy="base", reward="@pm_human"),
    }
    steps = range(microworld.SNAPSHOTS, microworld.rl()["num_updates"], microworld.SNAPSHOTS)
    models = {"pretrained": "base", "H-RLHF": "@rl_helpful", "HH-RLHF": "@rl_human", "SL-CAI": "@sl", "RL-CAI": "@rl",
              "RL-CAI-CoT": "@rl_chain"} | {f"RL-CAI-{step}": f"@rl:{step}" for step in steps}
    graph["evaluate_pareto"] = microworld.evaluate(models, anchor="SL-CAI", reward="@pm", feedback="", choices="")
    config.graph = graph
    config.stages = tuple(graph)
    return config
