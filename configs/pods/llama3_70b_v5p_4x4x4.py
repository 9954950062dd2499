"""Constitutional AI on Llama-3.1-70B with adapters of rank 16 on one base, on a v5p slice of 64
chips."""

from configs.pods import common

TOPOLOGY = "v5p:4x4x4"


def get_config():
    config = common.pod(
        "meta-llama/Llama-3.1-70B", fsdp=8, tensor=8, sl=16, pm=16, rl=2, rows=256, rank=16
    )
    config.graph.rl.value_learning_rate *= 10
    return config
