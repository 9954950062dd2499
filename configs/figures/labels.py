"""Ours: soft, hard and clamped labels of the same feedback, plain and with a chain of thought, as preference models and as
what a policy learns from them."""

from configs import microworld

LABELS = {"soft": {}, "hard": {"label_kind": "hard"}, "clamped": {"clamp": (0.4, 0.6)}}


def get_config():
    config = microworld.get_config()
    graph = {name: value for name, value in config.graph.to_dict().items() if name not in ("report", "evaluate", "pm", "rl")}
    graph["feedback_chain"] = microworld.feedback(mode="chain_of_thought")
    models = {"SL-CAI": "@sl"}
    for source in ("feedback", "feedback_chain"):
        for label, fields in LABELS.items():
            name = f"{label}{'_chain' if source == 'feedback_chain' else ''}"
            graph[f"pm_{name}"] = microworld.pm(labels=source, **fields)
            graph[f"rl_{name}"] = microworld.rl(reward=f"@pm_{name}")
            models[name] = f"@rl_{name}"
    graph["evaluate_labels"] = microworld.evaluate(models, anchor="SL-CAI", reward="@pm_soft", feedback="", choices="")
    config.graph = graph
    config.stages = tuple(graph)
    return config
