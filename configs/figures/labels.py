"""Ours: soft, hard and clamped labels of the same feedback, plain and with a chain of thought, and
what a policy learns from them. Plain soft labels are configs/microworld.py's own, clamped chains
are configs/figures/pareto.py's."""

from configs import microworld

LABELS = {"soft": {"clamp": ()}, "hard": {"label_kind": "hard"}, "clamped": {"clamp": (0.4, 0.6)}}
SHARED = {"soft": "rl", "clamped_chain": "rl_chain"}


def get_config():
    config = microworld.get_config()
    graph = {
        name: value
        for name, value in config.graph.to_dict().items()
        if name not in ("report", "evaluate")
    }
    graph["feedback_chain"] = microworld.feedback(mode="chain_of_thought")
    graph["pm_chain"] = microworld.pm(labels="feedback_chain", clamp=(0.4, 0.6))
    graph["rl_chain"] = microworld.rl(reward="@pm_chain")
    models = {"SL-CAI": "@sl"}
    for source in ("feedback", "feedback_chain"):
        for label, fields in LABELS.items():
            name = f"{label}{'_chain' if source == 'feedback_chain' else ''}"
            if name not in SHARED:
                graph[f"pm_{name}"] = microworld.pm(labels=source, **fields)
                graph[f"rl_{name}"] = microworld.rl(reward=f"@pm_{name}")
            models[name] = f"@{SHARED.get(name, f'rl_{name}')}"
    graph["evaluate_labels"] = microworld.evaluate(
        models, anchor="SL-CAI", reward="@pm", feedback="", choices=""
    )
    config.graph = graph
    config.stages = tuple(graph)
    return config
