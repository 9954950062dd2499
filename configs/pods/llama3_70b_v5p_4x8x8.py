"""Constitutional AI on Llama-3.1-70B, full finetuning of policy and value model, on a v5p slice of
256 chips."""

from configs.pods import common

TOPOLOGY = "v5p:4x8x8"


def get_config():
    return common.pod("meta-llama/Llama-3.1-70B", fsdp=32, tensor=8, sl=4, pm=4, rows=256)
