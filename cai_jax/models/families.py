"""The families of models: which config.json fields make each of them differ from plain Llama, and
the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cai_jax.errors import UserError

if TYPE_CHECKING:
    from cai_jax.models.config import ModelConfig

# Names in config.json of what the decoder can do (`blocks.activate`).
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the pretraining length. kind "linear" divides
    every frequency by `factor`; "llama3" divides the low ones, keeps the high ones and interpolates
    between (Llama 3.1)."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192


class Reader:
    """Checked access to the fields of a config.json."""

    def __init__(self, config: Mapping, where: str):
        self.config, self.where = config, where

    def count(self, field: str, default: int | None = None) -> int:
        return self._positive("integer", int, self.config.get(field), field, default)

    def number(
        self, field: str, default: float | None = None, among: Mapping | None = None
    ) -> float:
        value = (self.config if among is None else among).get(field)
        return float(self._positive("number", int | float, value, field, default))

    def _positive(self, name: str, kind, value, field: str, default):
        value = default if value is None else value
        if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
            raise UserError(
                f"{self.where}: field '{field}': expected a positive {name}, not {value!r}"
            )
        return value


def rope_from_hf(
    config: Mapping, read: Reader, default_theta: float
) -> tuple[float, RopeScaling | None]:
    """transformers 5 writes {"rope_parameters": {rope_theta, rope_type, …}}, by kind of layer where
    there are two; before, rope_theta (GPT-NeoX: rotary_emb_base) and rope_scaling."""
    theta = (
        config.get("rotary_emb_base") if config.get("rope_theta") is None else config["rope_theta"]
    )
    parameters = {"rope_theta": theta, **(config.get("rope_scaling") or {})}
    new = config.get("rope_parameters") or {}
    parameters |= new.get("full_attention") or {} if "full_attention" in new else new
    theta = read.number("rope_theta", default_theta, parameters)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind, read.number("factor", None, parameters))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        original = read.number("original_max_position_embeddings", None, parameters)
        return theta, RopeScaling(
            kind, *(read.number(name, None, parameters) for name in names), int(original)
        )
    raise UserError(
        f"{read.where}: rope type {kind!r} is not supported; default, linear and llama3 are"
    )


@dataclasses.dataclass(frozen=True)
class Family:
    """architecture: the class name in transformers; covers: known models; switches: config.json →
    ModelConfig fields that differ from plain Llama; fields: the way back; then what an absent field
    of config.json means."""

    architecture: str
    covers: str
    switches: Callable[[Mapping, Reader], dict]
    fields: Callable[[ModelConfig], dict]
    tied: bool = False
    activation: str = "silu"
    rope_theta: float = 10000.0
    classifier_name: str = ""

    @property
    def classifier(self) -> str:
        """The class in transformers of this decoder with a scalar head."""
        return self.classifier_name or self.architecture.replace(
            "ForCausalLM", "ForSequenceClassification"
        )


# ---------------------------------------------------------------- config.json → switches


def _biases(config: Mapping) -> dict:
    bias = bool(config.get("attention_bias", False))
    return {"qkv_bias": bias, "o_bias": bias, "mlp_bias": bool(config.get("mlp_bias", False))}


def _mistral(config: Mapping, read: Reader) -> dict:
    # An absent sliding_window means 4096 in transformers, an explicit null means none.
    return {"windows": _windows(config, read, config.get("sliding_window", 4096))}


def _qwen2(config: Mapping, read: Reader) -> dict:
    window, first = config.get("sliding_window"), config.get("max_window_layers") or 0
    window = window if config.get("use_sliding_window") else None
    return {
        "qkv_bias": True,
        "windows": _windows(config, read, window, lambda layer: layer >= first),
    }


def _qwen3(config: Mapping, read: Reader) -> dict:
    bias = bool(config.get("attention_bias", False))
    switches = {
        "qk_norm": "head",
        "qkv_bias": bias,
        "o_bias": bias,
        "head_dim": read.count("head_dim", 128),
    }
    return _qwen2(config, read) | switches


def _gemma2(config: Mapping, read: Reader) -> dict:
    """Every second layer slides, from the first on."""
    if config.get("use_bidirectional_attention"):
        raise UserError(
            f"{read.where}: field 'use_bidirectional_attention': such a model is no causal decoder"
        )

    def cap(field: str, default: float) -> float | None:
        return None if config.get(field, default) is None else read.number(field, default)

    bias = bool(config.get("attention_bias", False))
    return {
        "qkv_bias": bias,
        "o_bias": bias,
        "norm_offset": True,
        "block_norms": "both",
        "head_dim": read.count("head_dim", 256),
        "embed_scale": read.count("hidden_size") ** 0.5,
        "query_scalar": read.number("query_pre_attn_scalar", 256),
        "attention_softcap": cap("attn_logit_softcapping", 50.0),
        "final_softcap": cap("final_logit_softcapping", 30.0),
        "windows": _windows(
            config, read, config.get("sliding_window", 4096), lambda layer: layer % 2 == 0
        ),
    }


def _gemma3(config: Mapping, read: Reader) -> dict:
    """Five local layers, with their own rotary base, to a global one; q/k norms where Gemma 2 has a
    softcap."""
    caps = {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": config.get("final_logit_softcapping"),
    }
    every = read.count("sliding_window_pattern", 6)
    windows = _windows(
        config, read, config.get("sliding_window", 4096), lambda layer: (layer + 1) % every != 0
    )
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        raise UserError(
            f"{read.where}: field 'rope_parameters': the local layers' rope type must be 'default'"
        )
    base = local.get("rope_theta", config.get("rope_local_base_freq"))
    return _gemma2({**config, **caps}, read) | {
        "qk_norm": "head",
        "windows": windows,
        "ropes": tuple("local" if window else "global" for window in windows),
        "local_rope_theta": read.number(
            "rope_local_base_freq", 10000.0, {"rope_local_base_freq": base}
        ),
    }


def _olmo2(config: Mapping, read: Reader) -> dict:
    eps = read.number("rms_norm_eps", 1e-5)
    return _biases(config) | {
        "mlp_bias": False,
        "block_norms": "post",
        "qk_norm": "width",
        "norm_eps": eps,
    }


def _smollm3(config: Mapping, read: Reader) -> dict:
    """Every fourth layer has no positions."""
    count, every = read.count("num_hidden_layers"), read.count("no_rope_layer_interval", 4)
    rotated = config.get("no_rope_layers")  # 1 where there is RoPE, in spite of its name
    rotated = (
        [(layer + 1) % every != 0 for layer in range(count)] if rotated is None else rotated[:count]
    )
    if len(rotated) != count:
        raise UserError(
            f"{read.where}: field 'no_rope_layers': {len(rotated)} entries for {count} layers"
        )
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    windows = _windows(config, read, window, lambda layer: not rotated[layer])
    ropes = tuple("global" if yes else "none" for yes in rotated)
    return _biases(config) | {"windows": windows, "ropes": () if all(rotated) else ropes}


def _gpt_neox(config: Mapping, read: Reader) -> dict:
    bias = bool(config.get("attention_bias", True))
    share = (config.get("rope_parameters") or {}).get(
        "partial_rotary_factor", config.get("rotary_pct")
    )
    share = read.number("rotary_pct", 0.25, {"rotary_pct": share})
    head_dim = read.count("hidden_size") // read.count("num_attention_heads")
    return {
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": True,
        "gated_mlp": False,
        "norm": "layer",
        "norm_eps": read.number("layer_norm_eps", 1e-5),
        "parallel_blocks": bool(config.get("use_parallel_residual", True)),
        "head_dim": head_dim,
        "rotary_dim": int(head_dim * share),
    }


def _windows(
    config: Mapping, read: Reader, window: int | None, slides=lambda layer: True
) -> tuple[int, ...]:
    """Which layers slide: those that `layer_types` names, or those that `slides`."""
    if window is None:
        return ()
    count = read.count("num_hidden_layers")
    types = config.get("layer_types") or [
        "sliding_attention" if slides(i) else "" for i in range(count)
    ]
    if len(types) != count:
        raise UserError(
            f"{read.where}: field 'layer_types': {len(types)} entries for {count} layers"
        )
    windows = tuple(
        read.count("sliding_window", window) if kind == "sliding_attention" else 0 for kind in types
    )
    return windows if any(windows) else ()


# ---------------------------------------------------------------- switches → config.json

FIELDS: dict[str, Callable[[ModelConfig], object]] = {
    "sliding_window": lambda config: max(config.windows, default=0) or None,
    "layer_types": lambda config: [
        "sliding_attention" if window else "full_attention" for window, _ in config.layer_kinds
    ],
    "use_sliding_window": lambda config: any(config.windows),
    "max_window_layers": lambda config: next(
        (layer for layer, window in enumerate(config.windows) if window), config.num_layers
    ),
    "attention_bias": lambda config: config.qkv_bias,
    "mlp_bias": lambda config: config.mlp_bias,
    "no_rope_layers": lambda config: [int(rope != "none") for _, rope in config.layer_kinds],
    "hidden_activation": lambda config: config.activation,
    "query_pre_attn_scalar": lambda config: int(config.query_scalar),
    "attn_logit_softcapping": lambda config: config.attention_softcap,
    "final_logit_softcapping": lambda config: config.final_softcap,
    "rope_local_base_freq": lambda config: config.local_rope_theta,
    "layer_norm_eps": lambda config: config.norm_eps,
    "use_parallel_residual": lambda config: config.parallel_blocks,
    "rotary_emb_base": lambda config: config.rope_theta,
    "rotary_pct": lambda config: (config.rotary_dim or config.head_dim) / config.head_dim,
}
BIASES = ("attention_bias", "mlp_bias")
SLIDING = ("sliding_window", "layer_types")
SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
ROTARY = ("rotary_emb_base", "rotary_pct")
QWEN = (*SLIDING, "use_sliding_window", "max_window_layers")
GEMMA = (*SLIDING, "attention_bias", "hidden_activation", "query_pre_attn_scalar", *SOFTCAPS)


def writes(*names: str) -> Callable[[ModelConfig], dict]:
    """The function that gives those fields of config.json."""
    return lambda config: {name: FIELDS[name](config) for name in names}


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        "Llama 2 and 3, SmolLM2, TinyLlama",
        lambda config, read: _biases(config),
        writes(*BIASES),
    ),
    "mistral": Family(
        "MistralForCausalLM",
        "Mistral 7B and Nemo, Zephyr",
        _mistral,
        writes("sliding_window"),
    ),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen 2 and 2.5", _qwen2, writes(*QWEN)),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "dense Qwen 3",
        _qwen3,
        writes("attention_bias", *QWEN),
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma 2",
        _gemma2,
        writes(*GEMMA),
        tied=True,
        activation="gelu_pytorch_tanh",
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        "Gemma 3 text: 270M, 1B",
        _gemma3,
        writes(*GEMMA, "rope_local_base_freq"),
        tied=True,
        activation="gelu_pytorch_tanh",
        rope_theta=1e6,
        classifier_name="Gemma3TextForSequenceClassification",
    ),
    "olmo2": Family("Olmo2ForCausalLM", "OLMo 2", _olmo2, writes("attention_bias")),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        "SmolLM3",
        _smollm3,
        writes(*BIASES, *SLIDING, "no_rope_layers", "use_sliding_window"),
        tied=True,
        rope_theta=2e6,
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        "Pythia, GPT-NeoX",
        _gpt_neox,
        writes("attention_bias", "layer_norm_eps", "use_parallel_residual", *ROTARY),
        activation="gelu",
    ),
}
