"""Figures 4, 9 and 12: held-out comparisons judged by three sizes, plainly, with one chain of
thought and with five; the preference model next to them; harm identified and classified."""

from configs import default, microworld


def get_config():
    config = microworld.get_config()
    microworld.add_sizes(config)
    graph = config.graph.to_dict()
    for name in ("report", "evaluate", "rl"):
        graph.pop(name)
    no_prompts = {
        f"prompts_{name}": default.prompts("", "")
        for name in ("red_team", "helpful", "look_alike", "mixed")
    }
    for size, role in microworld.SIZES.items():
        reward = "@pm" if role == "helpful" else ""
        for chains in (1, 5):
            graph[f"judge_{size}_{chains}"] = microworld.evaluate(
                {},
                **no_prompts,
                reward=reward,
                feedback=role,
                num_chains=chains,
                choices="+".join(
                    str(microworld.DATA / f"{name}.jsonl")
                    for name in ("hhh", "identify", "classify")
                ),
            )
    config.graph = graph
    config.stages = tuple(graph)
    return config
