"""Constitutional AI on Llama-3.1-8B, full finetuning of policy and value model, on a v5e slice of
64 chips."""

from configs.pods import common

TOPOLOGY = "v5e:8x8"


def get_config():
    return common.pod("meta-llama/Llama-3.1-8B", fsdp=16, tensor=4, sl=8, pm=8, rl=2, rows=256)
