"""What a model is: the numbers and switches that the decoder reads, from and to a Hugging Face
`config.json`.

One decoder serves every family; `families.py` says in which switches each differs from plain Llama.
The parameters that a switch brings are in the table of `params.py`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from cai_jax.errors import UserError
from cai_jax.models import weight_files
from cai_jax.models.families import ACTIVATIONS, FAMILIES, Reader, RopeScaling, rope_from_hf

__all__ = ["FAMILIES", "ModelConfig", "RopeScaling"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hashable, so static under jit. Plain Llama is: pre-norm RMSNorm, RoPE over all of the head,
    grouped-query attention, SwiGLU, no biases; every switch below defaults to that."""

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
    # Switches: projections and activation,
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    gated_mlp: bool = True  # down(act(gate(x)) · up(x)), else down(act(up(x)))
    activation: str = "silu"  # as in config.json, a key of ACTIVATIONS
    # norms,
    norm: str = "rms"  # "rms"; "layer": LayerNorm with a bias
    norm_offset: bool = False  # norms multiply by 1 + weight
    # around attention and MLP: "pre" (of what goes in), "post" (of what comes out), "both"
    block_norms: str = "pre"
    parallel_blocks: bool = False  # attention and MLP read the same x
    # RMSNorm of queries and keys, before RoPE: "head" over Dh, "width" over all heads together
    qk_norm: str = ""
    # attention,
    windows: tuple[
        int, ...
    ] = ()  # per layer: a token sees itself and the window-1 before it, 0 = all; () = all 0
    ropes: tuple[
        str, ...
        # per layer: "global", "local" (local_rope_theta, not stretched), "none"; () = all global
    ] = ()
    local_rope_theta: float = 0.0
    rotary_dim: int = 0  # how many of the Dh are rotated, 0 = all
    query_scalar: float = 0.0  # queries are divided by its root, 0 = Dh
    attention_softcap: float | None = None  # scores s become cap · tanh(s / cap)
    # the ends.
    embed_scale: float = 1.0
    final_softcap: float | None = None  # of the logits

    @property
    def layer_kinds(self) -> tuple[tuple[int, str], ...]:
        """(window, rope) of every layer: what its weights do not say."""
        windows, ropes = (
            self.windows or (0,) * self.num_layers,
            self.ropes or ("global",) * self.num_layers,
        )
        return tuple(zip(windows, ropes, strict=True))

    @staticmethod
    def from_hf(config: Mapping, where: str = "config.json") -> ModelConfig:
        """From a parsed `config.json`. UserError, headed by `where`, for what is unknown, missing
        or impossible."""
        family = FAMILIES.get(config.get("model_type"))
        if family is None:
            name = ", ".join(config.get("architectures") or []) or "no architecture"
            works = ", ".join(f"{key} ({value.covers})" for key, value in FAMILIES.items())
            raise UserError(
                f"{where}: {name} (model_type {config.get('model_type')!r}) is not supported; "
                f"these are: {works}"
            )
        read = Reader(config, where)
        activation = (
            config.get("hidden_activation") or config.get("hidden_act") or family.activation
        )
        if activation not in ACTIVATIONS:
            raise UserError(
                f"{where}: field 'hidden_act': {activation!r} is not supported; "
                f"{', '.join(ACTIVATIONS)} are"
            )
        width, num_heads = read.count("hidden_size"), read.count("num_attention_heads")
        if config.get("head_dim") is None and width % num_heads:
            raise UserError(
                f"{where}: hidden_size {width} is not a multiple of num_attention_heads {num_heads}"
            )
        num_kv_heads = read.count("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise UserError(
                f"{where}: num_attention_heads {num_heads} is not a multiple of "
                f"num_key_value_heads {num_kv_heads}"
            )
        theta, scaling = rope_from_hf(config, read, family.rope_theta)
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
            "tied_embeddings": bool(config.get("tie_word_embeddings", family.tied)),
            "init_std": read.number("initializer_range", 0.02),
            "activation": activation,
        }
        return ModelConfig(**fields | family.switches(config, read))

    def to_hf(self) -> dict:
        """The `config.json` of this model, in the field names that every version of transformers
        reads."""
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
            "hidden_act": self.activation,
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
            if (path.parent / weight_files.ADAPTER).exists():
                line = weight_files.adapter_line(path.parent)
                raise UserError(f"{path.parent}: {line}") from None
            raise UserError(
                f"{path}: no such file; a model directory holds config.json and model.safetensors"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: not JSON ({error}); fetch or convert the model again"
            ) from None
        if not isinstance(config, dict):
            raise UserError(f"{path}: expected a JSON object")
        try:
            return ModelConfig.from_hf(config, str(path))
        except (TypeError, AttributeError, KeyError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path}: a field is not what it should be ({error}); fetch or convert the "
                "model again"
            ) from None

    def to_json(self, path) -> None:
        pathlib.Path(path).write_text(json.dumps(self.to_hf(), indent=2) + "\n", encoding="utf-8")
