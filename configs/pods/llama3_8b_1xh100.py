"""Constitutional AI on Llama-3.1-8B on a single H100: adapters for SL, preference model, policy and
value on one base."""

from configs.pods import common

TOPOLOGY = "h100:1"


def get_config():
    config = common.pod(
        "meta-llama/Llama-3.1-8B", fsdp=1, tensor=1, sl=256, pm=128, rl=64, rows=32, rank=16
    )
    config.graph.rl.value_learning_rate *= 10
    return config
