"""The paper's baselines by the same stages, from the pretrained model: helpful RLHF (H-RLHF), and with
`:variant=harmless` helpful-harmless RLHF (HH-RLHF), whose preference model also learns human harmlessness comparisons.

    python -m cai_jax.main --config=configs/rlhf.py --config.graph.pm.human.source=hh_helpful_base.jsonl.gz
"""

from configs import default


def get_config(arg=""):
    config = default.base_config()
    harmless = "variant=harmless" in (arg or "").split(",")
    config.graph = {
        "pm": default.pm(comparisons="", labels=""),
        "rl": default.rl(policy="base", prompts=default.prompts("topic:helpful")),
        "evaluate": default.evaluate({"pretrained": "base", "rlhf": "@rl"}, anchor="pretrained"),
        "report": {"kind": "report", "inputs": {}},
    }
    if harmless:
        # Give a harmlessness file of the hh-rlhf form: the embedded comparisons judge helpfulness alone.
        config.graph.pm.human.source = "topic:comparisons+data/hh_harmless_base.jsonl.gz"
        config.graph.rl.prompts.source = "topic:helpful+topic:prompts"
    config.stages = ("pm", "rl", "evaluate", "report")
    return config
