"""The one table of parameters that shapes, shardings, initial values and names on disk are read
from.

Parameters are plain nested dicts of arrays: {"embed": [V,D], "layers": {name: [L,…]}, "final_norm":
[D], "unembed": [V,D] unless tied}, and what the config's switches add. The layers are stacked along
a leading axis.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib

import jax
import jax.numpy as jnp

from cai_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """Shape, logical axis of each dimension (see `sharding.RULES`; None is never split), and
    initial values: "normal" with `std`, "ones" or "zeros"."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    kind: str = "normal"
    std: float = 0.0


Path = tuple[str, ...]


@functools.lru_cache(maxsize=64)
def param_table(config: ModelConfig) -> dict[Path, ParamSpec]:
    """Every parameter of the model: path → ParamSpec, in the order of the forward pass.

    Matrices start as N(0, 1/fan-in), those that write into the residual stream scaled down by
    1/√(2L) (Radford et al. 2019), embeddings as N(0, init_std²).
    """
    V, D, F, L = config.vocab_size, config.width, config.ffw, config.num_layers
    H, K, Dh = config.num_heads, config.num_kv_heads, config.head_dim
    into, out = D**-0.5, (2 * L) ** -0.5

    def layer(shape, axes, kind="normal", std=0.0):
        return ParamSpec((L, *shape), ("layers", *axes), kind, std)

    unit = "zeros" if config.norm_offset else "ones"  # what a norm's scale starts as
    heads, kv_heads = ("heads", "head_dim"), ("kv_heads", "head_dim")
    table: dict[Path, ParamSpec] = {
        ("embed",): ParamSpec((V, D), ("vocab", "embed"), "normal", config.init_std)
    }
    layers = {
        "q": layer((D, H, Dh), ("embed", *heads), std=into),
        "k": layer((D, K, Dh), ("embed", *kv_heads), std=into),
        "v": layer((D, K, Dh), ("embed", *kv_heads), std=into),
        "o": layer((H, Dh, D), (*heads, "embed"), std=out * (H * Dh) ** -0.5),
        "up": layer((D, F), ("embed", "mlp"), std=into),
        "down": layer((F, D), ("mlp", "embed"), std=out * F**-0.5),
    }
    if config.gated_mlp:
        layers["gate"] = layers["up"]
    if config.block_norms != "post":
        layers |= dict.fromkeys(("attn_norm", "mlp_norm"), layer((D,), ("embed",), unit))
    if config.block_norms != "pre":
        layers |= dict.fromkeys(("attn_post_norm", "mlp_post_norm"), layer((D,), ("embed",), unit))
    if config.norm == "layer":
        layers |= {
            f"{name}_bias": layer((D,), ("embed",), "zeros")
            for name in layers
            if name.endswith("_norm")
        }
    if config.qkv_bias:
        layers["q_bias"] = layer((H, Dh), heads, "zeros")
        layers["k_bias"] = layers["v_bias"] = layer((K, Dh), kv_heads, "zeros")
    if config.o_bias:
        layers["o_bias"] = layer((D,), ("embed",), "zeros")
    if config.mlp_bias:
        layers |= {
            f"{name}_bias": layer((F,), ("mlp",), "zeros")
            for name in ("gate", "up")
            if name in layers
        }
        layers["down_bias"] = layer((D,), ("embed",), "zeros")
    if config.qk_norm == "head":
        layers |= dict.fromkeys(("q_norm", "k_norm"), layer((Dh,), ("head_dim",), unit))
    elif config.qk_norm == "width":
        layers["q_norm"], layers["k_norm"] = (
            layer((H, Dh), heads, unit),
            layer((K, Dh), kv_heads, unit),
        )
    order = (
        "attn_norm",
        "q",
        "k",
        "v",
        "o",
        "attn_post_norm",
        "mlp_norm",
        "gate",
        "up",
        "down",
        "mlp_post_norm",
    )
    names = [name for name in order if name in layers]
    table |= {
        ("layers", name): layers[name]
        for name in (*names, *(name for name in layers if name not in order))
    }
    table["final_norm",] = ParamSpec((D,), ("embed",), unit)
    if config.norm == "layer":
        table["final_norm_bias",] = ParamSpec((D,), ("embed",), "zeros")
    if not config.tied_embeddings:
        table["unembed",] = ParamSpec((V, D), ("vocab", "embed"), "normal", into)
    return table


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
    """The value of one parameter: depends on `key` and its own name only, not on which others there
    are."""
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
