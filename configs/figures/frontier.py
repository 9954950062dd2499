"""Ours: reward against KL over the coefficient of the KL penalty, with best-of-n of the same policy
next to it."""

from configs import microworld

COEFFICIENTS = (0.01, 0.03, 0.3, 1.0)  # and that of configs/microworld.py


def get_config():
    config = microworld.get_config()
    graph = {
        name: value
        for name, value in config.graph.to_dict().items()
        if name not in ("report", "evaluate")
    }
    models = {"rl": "@rl"}
    for coefficient in COEFFICIENTS:
        name = f"rl_{str(coefficient).replace('.', '_')}"
        graph[name] = microworld.rl(kl_coefficient=coefficient)
        models[name] = f"@{name}"
    alone = {"feedback": "", "choices": "", "anchor": ""}
    graph["evaluate_frontier"] = microworld.evaluate(models, **alone)
    graph["evaluate_best_of_n"] = microworld.evaluate({"SL-CAI": "@sl"}, num_samples=16, **alone)
    config.graph = graph
    config.stages = tuple(graph)
    return config
