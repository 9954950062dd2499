"""Small models of every family, with weights that anybody can make again: numbers drawn by tensor name."""

import zlib

import numpy as np

PLAIN = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
CASES = {
    "llama": PLAIN | LLAMA,
    "llama_tied_biased": PLAIN | LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama3_scaled": PLAIN | LLAMA | {"rope_scaling": LLAMA3},
    "llama_linear": PLAIN | LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": PLAIN | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 5},
    "qwen2": PLAIN | QWEN2 | {"tie_word_embeddings": True},
    "qwen2_windows": PLAIN | QWEN2 | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": PLAIN | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 12},
}  # fmt: skip
# The second row is shorter; it is compared with its padding on the right and on the left.
TOKENS = np.random.default_rng(0).integers(0, PLAIN["vocab_size"], (2, 18))
LENGTHS = (18, 13)


def batch(left: bool) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [2, 18], mask bool [2, 18]) of the same two sequences, padded with token 0."""
    tokens, mask = np.zeros_like(TOKENS), np.zeros(TOKENS.shape, bool)
    for row, length in enumerate(LENGTHS):
        places = slice(TOKENS.shape[1] - length, None) if left else slice(0, length)
        tokens[row, places], mask[row, places] = TOKENS[row, :length], True
    return tokens, mask


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model directory, by name."""
    D, F, V, Dh = config["hidden_size"], config["intermediate_size"], config["vocab_size"], config["head_dim"]
    H, K = config["num_attention_heads"] * Dh, config["num_key_value_heads"] * Dh
    result = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        result["lm_head.weight"] = (V, D)
    matrices = {"self_attn.q_proj": (H, D), "self_attn.k_proj": (K, D), "self_attn.v_proj": (K, D),
                "self_attn.o_proj": (D, H), "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D),
                "mlp.down_proj": (D, F)}  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        result |= {prefix + name + ".weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
        result |= {prefix + name + ".weight": shape for name, shape in matrices.items()}
        if config["model_type"] == "qwen3":
            result |= {prefix + f"self_attn.{name}_norm.weight": (Dh,) for name in "qk"}
        biased = [name for name in matrices if config.get("mlp_bias") and name.startswith("mlp")]
        biased += [name for name in matrices if config.get("attention_bias") and name.startswith("self_attn")]
        if config["model_type"] == "qwen2":
            biased += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        result |= {prefix + name + ".bias": matrices[name][:1] for name in biased}
    return result


def weights(config: dict) -> dict[str, np.ndarray]:
    """float32; norm scales around 1, the rest large enough that attention and gates are far from linear."""

    def draw(name, shape):
        value = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        return (1 + 0.2 * value if "norm" in name else 0.25 * value).astype(np.float32)

    return {name: draw(name, shape) for name, shape in shapes(config).items()}
