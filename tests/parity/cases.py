"""Small models of every family, with weights that anybody can make again: numbers drawn by tensor
name."""

import zlib

import numpy as np

PLAIN = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
# What transformers assumes where these fields are absent lies beyond so small a vocabulary, or is
# token 0: the row of the embedding that pads gets no gradient in torch.
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
GEMMA = NO_IDS | {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 5,
    "sliding_window": 5,
    "head_dim": 12,
    "tie_word_embeddings": True,
}
NEOX = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
CASES = {
    "llama": PLAIN | LLAMA,
    "llama_tied_biased": PLAIN
    | LLAMA
    | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "llama3_scaled": PLAIN | LLAMA | {"rope_scaling": LLAMA3},
    "llama_linear": PLAIN | LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": PLAIN
    | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 5},
    "qwen2": PLAIN | QWEN2 | {"tie_word_embeddings": True},
    "qwen2_windows": PLAIN
    | QWEN2
    | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": PLAIN | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 12},
    "gemma2": PLAIN
    | GEMMA
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3": PLAIN
    | GEMMA
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "rope_local_base_freq": 100.0,
        "sliding_window_pattern": 3,
        "num_key_value_heads": 1,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "olmo2": PLAIN | NO_IDS | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"},
    "smollm3": PLAIN
    | NO_IDS
    | {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "no_rope_layer_interval": 2,
        "tie_word_embeddings": True,
    },
    "smollm3_windows": PLAIN
    | NO_IDS
    | {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": 5,
    },
    "gpt_neox": NEOX | {"rotary_pct": 0.25, "rotary_emb_base": 1000},
    "gpt_neox_sequential": NEOX
    | {"rotary_pct": 1.0, "use_parallel_residual": False, "attention_bias": False},
}
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
    family = config["model_type"]
    if family == "gpt_neox":
        return neox_shapes(config)
    D, F, V, Dh = (
        config["hidden_size"],
        config["intermediate_size"],
        config["vocab_size"],
        config["head_dim"],
    )
    H, K = config["num_attention_heads"] * Dh, config["num_key_value_heads"] * Dh
    result = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not config["tie_word_embeddings"]:
        result["lm_head.weight"] = (V, D)
    matrices = {
        "self_attn.q_proj": (H, D),
        "self_attn.k_proj": (K, D),
        "self_attn.v_proj": (K, D),
        "self_attn.o_proj": (D, H),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    norms = ["input_layernorm"] * (family != "olmo2") + ["post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm"] * ("gemma" in family)
    norms += ["post_feedforward_layernorm"] * ("gemma" in family or family == "olmo2")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        result |= {prefix + name + ".weight": (D,) for name in norms}
        result |= {prefix + name + ".weight": shape for name, shape in matrices.items()}
        if family in ("qwen3", "gemma3_text", "olmo2"):
            sizes = {"q": H, "k": K} if family == "olmo2" else {"q": Dh, "k": Dh}
            result |= {
                prefix + f"self_attn.{name}_norm.weight": (size,) for name, size in sizes.items()
            }
        biased = [name for name in matrices if config.get("mlp_bias") and name.startswith("mlp")]
        biased += [
            name
            for name in matrices
            if config.get("attention_bias") and name.startswith("self_attn")
        ]
        if family == "qwen2":
            biased += ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
        result |= {prefix + name + ".bias": matrices[name][:1] for name in biased}
    return result


def neox_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    D, F, V = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    result = {"gpt_neox.embed_in.weight": (V, D), "embed_out.weight": (V, D)}
    result |= {f"gpt_neox.final_layer_norm.{kind}": (D,) for kind in ("weight", "bias")}
    matrices = {
        "attention.query_key_value": (3 * D, D),
        "attention.dense": (D, D),
        "mlp.dense_h_to_4h": (F, D),
        "mlp.dense_4h_to_h": (D, F),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"gpt_neox.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            result |= {f"{prefix}{norm}.{kind}": (D,) for kind in ("weight", "bias")}
        for name, shape in matrices.items():
            result[f"{prefix}{name}.weight"] = shape
            if config.get("attention_bias", True) or name.startswith("mlp"):
                result[f"{prefix}{name}.bias"] = shape[:1]
    return result


def weights(config: dict) -> dict[str, np.ndarray]:
    """float32; norm scales around 1 (around 0 where the model adds 1 to them), the rest large
    enough that attention and gates are far from linear."""
    around = 0 if "gemma" in config["model_type"] else 1

    def draw(name, shape):
        value = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        scale = "norm" in name and name.endswith("weight")
        return (around + 0.2 * value if scale else 0.25 * value).astype(np.float32)

    return {name: draw(name, shape) for name, shape in shapes(config).items()}
