"""What a model is: the numbers and switches that the decoder reads, from and to a Hugging Face `config.json`.

One decoder serves every family; a family is one entry of `FAMILIES`: a function from config.json to the switches in
which it differs from plain Llama, and the fields it writes back. The optional parameters that a switch brings into the
layers are (beside those of plain Llama, all stacked over L):
  qkv_bias  q_bias [L,H,Dh], k_bias [L,K,Dh], v_bias [L,K,Dh]      o_bias    o_bias [L,D]
  mlp_bias  gate_bias [L,F], up_bias [L,F], down_bias [L,D]        qk_norm   q_norm [L,Dh], k_norm [L,Dh]
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping

from cai_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the pretraining length. kind "linear" divides every frequency by
    `factor`; "llama3" divides the low ones, keeps the high ones and interpolates between (Llama 3.1)."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hashable, so static under jit. Plain Llama is: pre-norm RMSNorm, RoPE over the whole head, grouped-query
    attention, SwiGLU, no biases; every switch below defaults to that."""

    family: str
    vocab_size: int  # V
    width: int  # D
    ffw: int  # F
    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # Dh
    max_length: int  # the longest context, in tokens, that the model was made for
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    init_std: float = 0.02
    # Switches.
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm over Dh of every query and key head, before RoPE
    windows: tuple[int, ...] = ()  # per layer: a token sees itself and the window-1 before it, 0 = all; () = all 0

    @staticmethod
    def from_hf(config: Mapping, where: str = "config.json") -> ModelConfig:
        """From a parsed `config.json`. UserError, headed by `where`, for what is unknown, missing or impossible."""
        family = FAMILIES.get(config.get("model_type"))
        if family is None:
            name = ", ".join(config.get("architectures") or []) or "no architecture"
            works = ", ".join(f"{key} ({value.covers})" for key, value in FAMILIES.items())
            raise UserError(
                f"{where}: {name} (model_type {config.get('model_type')!r}) is not supported; these are: {works}"
            )
        read = _Reader(config, where)
        if (activation := config.get("hidden_act", "silu")) != "silu":
            raise UserError(f"{where}: field 'hidden_act': {config['model_type']} needs 'silu', not {activation!r}")
        width, num_heads = read.count("hidden_size"), read.count("num_attention_heads")
        if config.get("head_dim") is None and width % num_heads:
            raise UserError(f"{where}: hidden_size {width} is not a multiple of num_attention_heads {num_heads}")
        num_kv_heads = read.count("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise UserError(
                f"{where}: num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
            )
        theta, scaling = _rope_from_hf(config, read)
        fields = {
            "family": config["model_type"],
            "vocab_size": read.count("vocab_size"),
            "width": width,
            "ffw": read.count("intermediate_size"),
            "num_layers": read.count("num_hidden_layers"),
            "num_heads": num_heads,
            "num_kv_heads": num_kv_heads,
            "head_dim": read.count("head_dim", width // num_heads),
            "max_length": read.count("max_position_embeddings", 2048),
            "norm_eps": read.number("rms_norm_eps", 1e-6),
            "rope_theta": theta,
            "rope_scaling": scaling,
            "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
            "init_std": read.number("initializer_range", 0.02),
        }
        return ModelConfig(**fields | family.switches(config, read))

    def to_hf(self) -> dict:
        """The `config.json` of this model, in the field names that every version of transformers reads."""
        scaling = None
        if self.rope_scaling is not None:
            scaling = {"rope_type": self.rope_scaling.kind, "factor": self.rope_scaling.factor}
            if self.rope_scaling.kind == "llama3":
                scaling |= {
                    "low_freq_factor": self.rope_scaling.low_freq_factor,
                    "high_freq_factor": self.rope_scaling.high_freq_factor,
                    "original_max_position_embeddings": self.rope_scaling.original_max_length,
                }
        family = FAMILIES[self.family]
        return {
            "architectures": [family.architecture],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.ffw,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_length,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": self.tied_embeddings,
            "initializer_range": self.init_std,
            **family.fields(self),
        }

    @staticmethod
    def from_json(path) -> ModelConfig:
        """Reads `path`: a config.json, or the directory that holds one."""
        path = pathlib.Path(path)
        path = path / "config.json" if path.is_dir() else path
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{path}: no such file; a model directory holds config.json and model.safetensors"
            ) from None
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error}); fetch or convert the model again") from None
        if not isinstance(config, dict):
            raise UserError(f"{path}: expected a JSON object")
        return ModelConfig.from_hf(config, str(path))

    def to_json(self, path) -> None:
        pathlib.Path(path).write_text(json.dumps(self.to_hf(), indent=2) + "\n", encoding="utf-8")


class _Reader:
    """Checked access to the fields of a config.json."""

    def __init__(self, config: Mapping, where: str):
        self.config, self.where = config, where

    def count(self, field: str, default: int | None = None) -> int:
        value = self.config.get(field)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{self.where}: field '{field}': expected a positive integer, found {value!r}")
        return value

    def number(self, field: str, default: float | None = None, among: Mapping | None = None) -> float:
        value = (self.config if among is None else among).get(field)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise UserError(f"{self.where}: field '{field}': expected a positive number, found {value!r}")
        return float(value)


def _rope_from_hf(config: Mapping, read: _Reader) -> tuple[float, RopeScaling | None]:
    """transformers 5 writes {"rope_parameters": {rope_theta, rope_type, …}}; before, rope_theta and rope_scaling."""
    parameters = {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
    parameters |= config.get("rope_parameters") or {}
    theta = read.number("rope_theta", 10000.0, parameters)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind, read.number("factor", None, parameters))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        original = read.number("original_max_position_embeddings", None, parameters)
        return theta, RopeScaling(kind, *(read.number(name, None, parameters) for name in names), int(original))
    raise UserError(f"{read.where}: rope type {kind!r} is not supported; default, linear and llama3 are")


@dataclasses.dataclass(frozen=True)
class Family:
    """architecture: the class name in transformers; covers: known models; switches: config.json → ModelConfig fields
    that differ from plain Llama; fields: the way back."""

    architecture: str
    covers: str
    switches: Callable[[Mapping, _Reader], dict]
    fields: Callable[[ModelConfig], dict]


def _llama_switches(config: Mapping, read: _Reader) -> dict:
    bias = bool(config.get("attention_bias", False))
    return {"qkv_bias": bias, "o_bias": bias, "mlp_bias": bool(config.get("mlp_bias", False))}


def _mistral_switches(config: Mapping, read: _Reader) -> dict:
    # An absent sliding_window means 4096 in transformers, an explicit null means none.
    return {"windows": _windows(config, read, config.get("sliding_window", 4096), first=0)}


def _qwen2_switches(config: Mapping, read: _Reader) -> dict:
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    return {"qkv_bias": True, "windows": _windows(config, read, window, config.get("max_window_layers") or 0)}


def _qwen3_switches(config: Mapping, read: _Reader) -> dict:
    bias = bool(config.get("attention_bias", False))
    switches = {"qk_norm": True, "qkv_bias": bias, "o_bias": bias, "head_dim": read.count("head_dim", 128)}
    return _qwen2_switches(config, read) | switches


def _windows(config: Mapping, read: _Reader, window: int | None, first: int) -> tuple[int, ...]:
    """Which layers slide: those that `layer_types` names, or all from `first` on."""
    if window is None:
        return ()
    count = read.count("num_hidden_layers")
    types = config.get("layer_types") or ["sliding_attention" if i >= first else "" for i in range(count)]
    if len(types) != count:
        raise UserError(f"{read.where}: field 'layer_types': {len(types)} entries for {count} layers")
    windows = tuple(read.count("sliding_window", window) if kind == "sliding_attention" else 0 for kind in types)
    return windows if any(windows) else ()


def _qwen_windows(config: ModelConfig) -> dict:
    windows = config.windows or (0,) * config.num_layers
    sliding = [i for i, window in enumerate(windows) if window]
    return {
        "use_sliding_window": bool(sliding),
        "sliding_window": max(windows) or None,
        "max_window_layers": sliding[0] if sliding else config.num_layers,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        "Llama 2 and 3, SmolLM2, TinyLlama",
        _llama_switches,
        lambda config: {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        "Mistral 7B and Nemo, Zephyr",
        _mistral_switches,
        lambda config: {"sliding_window": max(config.windows, default=0) or None},
    ),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen 2 and 2.5", _qwen2_switches, _qwen_windows),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "dense Qwen 3",
        _qwen3_switches,
        lambda config: {"attention_bias": config.qkv_bias} | _qwen_windows(config),
    ),
}
