"""Constitutional AI on Llama-3.1-8B, full finetuning of policy and value model, on one machine of
eight H100."""

from configs.pods import common

TOPOLOGY = "h100:8"


def get_config():
    return common.pod("meta-llama/Llama-3.1-8B", fsdp=8, tensor=1, sl=16, pm=8, rl=4, rows=128)
