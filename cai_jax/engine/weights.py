"""The weights as decoding reads them: layers one by one, projections joined, transposed to what
the platform prefers."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cai_jax.core import sharding
from cai_jax.models import blocks, lora
from cai_jax.models.config import ModelConfig
from cai_jax.models.params import param_table
from cai_jax.models.rounding import rounded

# Sampling does not split weights along the fsdp axis: they would be gathered at every token.
DECODE_RULES = {**sharding.RULES, "embed": ()}


def unstacked(
    layers: dict, config: ModelConfig, dtype, fuse: bool, out_major: bool, int8: bool
) -> list[dict]:
    """The layers' weights one by one, adapters added up. A layer after the other, so that nothing
    of the size of all of them is there but the result.

    Args:
      layers: stacked, as in the parameters.
      config: the model's.
      dtype: of the result.
      fuse: q, k, v and gate, up joined into single matrices (not where the mesh splits heads).
      out_major: matrices transposed to [out, in] (what a CPU prefers).
      int8: matrices `rounded`, and not transposed.

    Returns:
      A dict a layer.
    """
    return [
        _layer(layers, np.int32(index), config, jnp.dtype(dtype), fuse, out_major, int8)
        for index in range(config.num_layers)
    ]


@functools.partial(jax.jit, static_argnames=("config", "dtype", "fuse", "out_major", "int8"))
def _layer(
    layers: dict, index, config: ModelConfig, dtype, fuse: bool, out_major: bool, int8: bool
) -> dict:

    def laid_out(weight, axes_in: int):
        if int8:
            return rounded(weight, axes_in)
        if not out_major:
            return weight
        size_in = math.prod(weight.shape[:axes_in])
        return blocks.OutMajor(weight.reshape(size_in, -1).T)

    weights = jax.tree.map(
        lambda stack: jax.lax.dynamic_index_in_dim(stack, index, keepdims=False), layers
    )
    weights = {name: lora.added_up(weight, dtype) for name, weight in weights.items()}
    if fuse:
        weights["qkv"] = jnp.concatenate([weights.pop(name) for name in ("q", "k", "v")], axis=1)
        if config.gated_mlp:
            weights["gate_up"] = jnp.concatenate(
                [weights.pop(name) for name in ("gate", "up")], axis=1
            )
    for name in ("qkv", "q", "k", "v", "gate_up", "gate", "up", "down", "o"):
        if name in weights:
            weights[name] = laid_out(weights[name], 2 if name == "o" else 1)
    return weights


def prepare(
    params: dict,
    config: ModelConfig,
    fuse: bool = False,
    out_major: bool = False,
    int8: bool = False,
) -> dict:
    """Parameters as `cached` takes them. With int8 embeddings, norms and biases stay as they are.

    Args:
      params: may have adapters.
      config, fuse, out_major, int8: as in `unstacked`.

    Returns:
      {"embed", "unembed", "final_norm", "layers": [a dict a layer]}.
    """
    unembed = params["embed"] if config.tied_embeddings else params["unembed"]
    if int8:
        unembed = jax.jit(lambda table_VxD: rounded(table_VxD.T, 1))(unembed)
    return {
        "embed": params["embed"],
        "unembed": blocks.OutMajor(unembed) if out_major and not int8 else unembed,
        **{name: value for name, value in params.items() if name.startswith("final_norm")},
        "layers": unstacked(params["layers"], config, params["embed"].dtype, fuse, out_major, int8),
    }


def unembedding(weights: dict, dtype) -> jax.Array:
    """[V, D], whatever form it has."""
    unembed = weights["unembed"]
    if isinstance(unembed, blocks.Int8):
        return (unembed.values * unembed.scale).T.astype(dtype)
    return unembed.matrix if isinstance(unembed, blocks.OutMajor) else unembed


def layer_axes(config: ModelConfig) -> dict:
    """Logical axes of one layer's weights."""
    return {path[1]: p.axes[1:] for path, p in param_table(config).items() if len(path) == 2}


def fuses(mesh: Mesh) -> bool:
    """Whether q, k, v and gate, up are joined for decoding: not where the mesh splits heads."""
    return mesh.shape["tensor"] == 1


def layer_shardings(weights: dict, config: ModelConfig, mesh: Mesh) -> dict:
    """Of one layer's weights (arrays or their shapes) for decoding: split by tensor, not by
    fsdp."""
    known = layer_axes(config)

    def sharding_of(name, x):
        if name not in known:
            return sharding.replicated(mesh)
        axes = known[name]
        if isinstance(x, blocks.Int8):
            return blocks.Int8(of(axes, x.values), of(axes[-x.scale.ndim :], x.scale))
        return of(axes, x)

    def of(axes, x):
        return jax.sharding.NamedSharding(mesh, sharding.spec(axes, x.shape, mesh, DECODE_RULES))

    return {name: sharding_of(name, x) for name, x in weights.items()}
