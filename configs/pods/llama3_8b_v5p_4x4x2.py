"""Constitutional AI on Llama-3.1-8B, full finetuning of policy and value model, on a v5p slice of
32 chips."""

from configs.pods import common

TOPOLOGY = "v5p:4x4x2"


def get_config():
    return common.pod("meta-llama/Llama-3.1-8B", fsdp=32, tensor=1, sl=2, pm=2, rows=256)
