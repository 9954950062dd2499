"""Constitutional AI on Qwen2.5-32B, full finetuning of policy and value model, on a v5p slice of 64
chips."""

from configs.pods import common

TOPOLOGY = "v5p:4x4x4"


def get_config():
    return common.pod("Qwen/Qwen2.5-32B", fsdp=16, tensor=4, sl=4, pm=4, rows=256)
