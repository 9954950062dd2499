"""The paper's graph on an open model: `--config=configs/models/zoo.py:qwen3_8b
--workdir=runs/qwen3_8b`.

Adapters of rank 16 in bfloat16, so that policy, reference, preference model and value model are one
copy of the base. The names are those of the Hugging Face hub; a directory of the same family does
as well: `--config.models.base=DIR`. All of them are settings to begin with, none has been run
to its end; README.md says what was tried of each family.
"""

from configs import default

# Name → (what is finetuned, what answers and judges). Of models without an instruction-tuned form
# both are the same.
MODELS = {
    "smollm2_135m": ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "smollm2_1_7b": ("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
    "smollm3_3b": ("HuggingFaceTB/SmolLM3-3B-Base", "HuggingFaceTB/SmolLM3-3B"),
    "llama2_7b": ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
    "llama32_1b": ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
    "llama31_8b": ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
    "mistral_7b": ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
    "qwen25_7b": ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"),
    "qwen3_8b": ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
    "gemma2_2b": ("google/gemma-2-2b", "google/gemma-2-2b-it"),
    "gemma3_1b": ("google/gemma-3-1b-pt", "google/gemma-3-1b-it"),
    "olmo2_7b": ("allenai/OLMo-2-1124-7B", "allenai/OLMo-2-1124-7B-Instruct"),
    "pythia_1_4b": ("EleutherAI/pythia-1.4b", "EleutherAI/pythia-1.4b"),
}


def get_config(name="smollm2_135m"):
    if name not in MODELS:
        raise ValueError(f"'{name}' is not in the zoo; it has {', '.join(MODELS)}")
    base, helpful = MODELS[name]
    config = default.get_config()
    config.models.update({"base": base, "helpful": helpful, "feedback": "helpful"})
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    config.model.update({"dtype": "bfloat16", "scan_layers": True, "remat": "full"})
    config.sampling.update({"batch_size": 32, "max_length": 4096})
    for stage, parts in (("sl", 64), ("pm", 32), ("rl", 16)):
        config.graph[stage].update(
            {"num_microbatches": parts, "learning_rate": 10 * config.graph[stage].learning_rate}
        )
        config.graph[stage].adapters.rank = 16
    config.graph.rl.value_learning_rate *= 10
    return config
