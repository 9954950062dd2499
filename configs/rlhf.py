"""The paper's baselines by the same stages, from the pretrained model: helpful RLHF (H-RLHF), and
with `:variant=harmless` helpful-harmless RLHF (HH-RLHF), whose preference model also learns human
harmlessness comparisons.

    python -m cai_jax.main --config=configs/rlhf.py:helpful=hh_helpful_base.jsonl.gz
    python -m cai_jax.main
    --config=configs/rlhf.py:variant=harmless,harmless=hh_harmless_base.jsonl.gz

`helpful` and `harmless` are sources of pairs in the form of hh-rlhf
(`cai_jax/data/comparisons.py`); without `helpful` the embedded ones are used. Of a file eight
tenths of the first human turns train the preference model; the two tenths that are left, the same
in every file, are what the evaluation `preference_pairs` measures (`config.topic.comparisons`): no
prompt is on both sides.
"""

from configs import default

HARMLESS = "data/hh_harmless_base.jsonl.gz"  # where none is named


def get_config(arg=""):
    given = dict(part.partition("=")[::2] for part in (arg or "").split(",") if part)
    if unknown := set(given) - {"variant", "helpful", "harmless"}:
        raise ValueError(
            f"'{', '.join(sorted(unknown))}': expected variant=harmless, helpful=FILE, "
            "harmless=FILE"
        )
    files = [given.get("helpful", "embedded:helpful_comparisons")]
    config = default.base_config()
    graph = {
        "pm": default.pm(comparisons="", labels=""),
        "rl": default.rl(policy="base", prompts=default.prompts("topic:helpful")),
        "evaluate": default.evaluate({"pretrained": "base", "rlhf": "@rl"}, anchor="pretrained"),
        "report": default.report(),
    }
    if given.get("variant") == "harmless" or "harmless" in given:
        files.append(given.get("harmless", HARMLESS))
        graph["rl"]["prompts"]["source"] = "topic:helpful+topic:prompts"
    config.topic.comparisons = "+".join(files)
    default.set_graph(config, graph)
    return config
