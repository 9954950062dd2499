"""The one table of parameters, from which shapes, shardings, initial values and the names and axes
in a Hugging Face directory are read.

Parameters are plain nested dicts of arrays: {"embed": [V,D], "layers": {name: [L,…]}, "final_norm":
[D], "unembed": [V,D] unless tied}, and what the config's switches add. The layers are stacked along
a leading axis.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import zlib

import jax
import jax.numpy as jnp

from cai_jax.models.config import ModelConfig

Path = tuple[str, ...]

# Parameter → (our axes, the axes in the files), in the order of the forward pass. Our axes leave
# out the leading L of the layers' stacks; the files have one tensor a layer. A dot joins axes that
# the files keep as one; a projection is [out, in] there.
AXES = {
    "embed": ("V D", "V D"),
    "attn_norm": ("D", "D"),
    "attn_norm_bias": ("D", "D"),
    "q": ("D H Dh", "H.Dh D"),
    "k": ("D K Dh", "K.Dh D"),
    "v": ("D K Dh", "K.Dh D"),
    "q_bias": ("H Dh", "H.Dh"),
    "k_bias": ("K Dh", "K.Dh"),
    "v_bias": ("K Dh", "K.Dh"),
    "q_norm": ("Dh", "Dh"),
    "k_norm": ("Dh", "Dh"),
    "o": ("H Dh D", "D H.Dh"),
    "o_bias": ("D", "D"),
    "attn_post_norm": ("D", "D"),
    "attn_post_norm_bias": ("D", "D"),
    "mlp_norm": ("D", "D"),
    "mlp_norm_bias": ("D", "D"),
    "gate": ("D F", "F D"),
    "gate_bias": ("F", "F"),
    "up": ("D F", "F D"),
    "up_bias": ("F", "F"),
    "down": ("F D", "D F"),
    "down_bias": ("D", "D"),
    "mlp_post_norm": ("D", "D"),
    "mlp_post_norm_bias": ("D", "D"),
    "final_norm": ("D", "D"),
    "final_norm_bias": ("D", "D"),
    "unembed": ("V D", "V D"),
}
WIDE_NORMS = {"q_norm": ("H Dh", "H.Dh"), "k_norm": ("K Dh", "K.Dh")}  # config.qk_norm "width"
OUTSIDE = ("embed", "final_norm", "final_norm_bias", "unembed")  # not in the layers
# The layers' matrices → how many of their axes, after the layers', are their input.
MATRICES = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}

# Names in the files, "{}" being the layer; a bias is called as its weight is. (name, i): the i-th
# part of a tensor that has an axis "3" behind the heads.
LLAMA = {
    "embed": "model.embed_tokens.weight",
    "attn_norm": "model.layers.{}.input_layernorm.weight",
    "q": "model.layers.{}.self_attn.q_proj.weight",
    "k": "model.layers.{}.self_attn.k_proj.weight",
    "v": "model.layers.{}.self_attn.v_proj.weight",
    "o": "model.layers.{}.self_attn.o_proj.weight",
    "q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "unembed": "lm_head.weight",
}
OLMO2 = LLAMA | {
    "attn_post_norm": "model.layers.{}.post_attention_layernorm.weight",
    "mlp_post_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}
GEMMA = OLMO2 | {"mlp_norm": "model.layers.{}.pre_feedforward_layernorm.weight"}
GPT_NEOX = {
    "embed": "gpt_neox.embed_in.weight",
    "attn_norm": "gpt_neox.layers.{}.input_layernorm.weight",
    "q": ("gpt_neox.layers.{}.attention.query_key_value.weight", 0),
    "k": ("gpt_neox.layers.{}.attention.query_key_value.weight", 1),
    "v": ("gpt_neox.layers.{}.attention.query_key_value.weight", 2),
    "o": "gpt_neox.layers.{}.attention.dense.weight",
    "mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm.weight",
    "up": "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight",
    "down": "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
    "final_norm": "gpt_neox.final_layer_norm.weight",
    "unembed": "embed_out.weight",
}
NAMES = {"gemma2": GEMMA, "gemma3_text": GEMMA, "olmo2": OLMO2, "gpt_neox": GPT_NEOX}
UNEMBEDDINGS = ("lm_head.weight", "embed_out.weight")
# In files, but no weights: buffers of old checkpoints.
IGNORED = re.compile(r".*\.(inv_freq|masked_bias|attention\.bias)$")


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Shape, logical axis of each dimension (see `sharding.RULES`; None is never split), and
    initial values: "normal" with `std`, "ones" or "zeros"."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    kind: str = "normal"
    std: float = 0.0


def axes_of(name: str, config: ModelConfig) -> tuple[str, str]:
    """(our axes, the files' axes) of a parameter, as in AXES."""
    return (WIDE_NORMS if config.qk_norm == "width" else {}).get(name, AXES[name])


def sizes(config: ModelConfig) -> dict[str, tuple[int, str]]:
    """Letter of an axis → (size, logical axis)."""
    return {
        "V": (config.vocab_size, "vocab"),
        "D": (config.width, "embed"),
        "F": (config.ffw, "mlp"),
        "H": (config.num_heads, "heads"),
        "K": (config.num_kv_heads, "kv_heads"),
        "Dh": (config.head_dim, "head_dim"),
    }


def _is_present(name: str, config: ModelConfig) -> bool:
    weight = name.removesuffix("_bias")
    if weight != name:
        switches = {"o": config.o_bias, "gate": config.mlp_bias, "up": config.mlp_bias}
        switches |= dict.fromkeys("qkv", config.qkv_bias) | {"down": config.mlp_bias}
        return switches.get(weight, config.norm == "layer") and _is_present(weight, config)
    return {
        "attn_norm": config.block_norms != "post",
        "mlp_norm": config.block_norms != "post",
        "attn_post_norm": config.block_norms != "pre",
        "mlp_post_norm": config.block_norms != "pre",
        "q_norm": bool(config.qk_norm),
        "k_norm": bool(config.qk_norm),
        "gate": config.gated_mlp,
        "unembed": not config.tied_embeddings,
    }.get(name, True)


@functools.lru_cache(maxsize=64)
def param_table(config: ModelConfig) -> dict[Path, ParamSpec]:
    """Every parameter of the model: path → ParamSpec, in the order of the forward pass.

    Matrices start as N(0, 1/fan-in), those that write into the residual stream scaled down by
    1/√(2L) (Radford et al. 2019), embeddings as N(0, init_std²).
    """
    table, known = {}, sizes(config)
    for name in (name for name in AXES if _is_present(name, config)):
        shape, axes = zip(*(known[axis] for axis in axes_of(name, config)[0].split()), strict=True)
        kind, std = "normal", 0.0
        if name.endswith("_bias"):
            kind = "zeros"
        elif name.endswith("_norm"):
            kind = "zeros" if config.norm_offset else "ones"
        elif name == "embed":
            std = config.init_std
        elif name == "unembed":
            std = config.width**-0.5
        else:
            std = math.prod(shape[: MATRICES[name]]) ** -0.5
            std *= (2 * config.num_layers) ** -0.5 if name in ("o", "down") else 1.0
        if name in OUTSIDE:
            table[name,] = ParamSpec(shape, axes, kind, std)
        else:
            stacked = (config.num_layers, *shape), ("layers", *axes)
            table["layers", name] = ParamSpec(*stacked, kind, std)
    return table


def file_name(name: str, config: ModelConfig) -> tuple[str, int | None]:
    """(name in the files, which of three parts of that tensor or None) of a parameter."""
    known = NAMES.get(config.family, LLAMA)[name.removesuffix("_bias")]
    text, part = known if isinstance(known, tuple) else (known, None)
    return text.replace(".weight", ".bias") if name.endswith("_bias") else text, part


def nest(flat: dict) -> dict:
    """{("a", "b"): x, …} → {"a": {"b": x}, …}"""
    tree: dict = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def abstract_params(config: ModelConfig, dtype=jnp.float32) -> dict:
    """The tree of ShapeDtypeStructs."""
    return nest(
        {path: jax.ShapeDtypeStruct(p.shape, dtype) for path, p in param_table(config).items()}
    )


def param_axes(config: ModelConfig) -> dict:
    """The tree of logical axes (tuples of names), for `sharding.tree_shardings`."""
    return nest({path: p.axes for path, p in param_table(config).items()})


def initial_value(path: Path, param: ParamSpec, key: jax.Array, dtype) -> jax.Array:
    """The first value of a parameter.

    Args:
      path: its name; it and `key` alone decide, not which other parameters there are.
      param: how it begins.
      key: of the model.
      dtype: of the array.
    Returns:
      An array of `param.shape`.
    """
    if param.kind != "normal":
        return {"ones": jnp.ones, "zeros": jnp.zeros}[param.kind](param.shape, dtype)
    key = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
    return (param.std * jax.random.normal(key, param.shape, jnp.float32)).astype(dtype)


def init_params(config: ModelConfig, key: jax.Array, dtype=jnp.float32) -> dict:
    """Random initial parameters; pure, so `jit` with `out_shardings` makes them in place on a
    mesh."""
    return nest(
        {path: initial_value(path, p, key, dtype) for path, p in param_table(config).items()}
    )


def num_params(config: ModelConfig) -> int:
    return sum(math.prod(p.shape) for p in param_table(config).values())
