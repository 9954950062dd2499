"""The weights as decoding reads them: layers one by one, projections joined, turned to what the platform prefers."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cai_jax import sharding
from cai_jax.models import blocks
from cai_jax.models.config import ModelConfig
from cai_jax.models.decoder import unstack
from cai_jax.models.params import param_table

# Sampling keeps whole rows of weights on every device of the fsdp axis: they would be gathered at every token.
DECODE_RULES = {**sharding.RULES, "embed": ()}


@functools.partial(jax.jit, static_argnames=("config", "fuse", "out_major"))
def unstacked(layers: dict, config: ModelConfig, fuse: bool, out_major: bool) -> list[dict]:
    """The layers' weights one by one. fuse: q, k, v and gate, up joined into single matrices (not where the mesh splits
    heads); out_major: matrices turned to [out, in] (what a CPU prefers)."""

    def turned(weight, axes_in: int):
        if not out_major:
            return weight
        size_in = math.prod(weight.shape[:axes_in])
        return blocks.OutMajor(weight.reshape(size_in, -1).T)

    result = []
    for weights in unstack(layers, config.num_layers):
        if fuse:
            weights["qkv"] = jnp.concatenate([weights.pop(name) for name in ("q", "k", "v")], axis=1)
            if config.gated_mlp:
                weights["gate_up"] = jnp.concatenate([weights.pop(name) for name in ("gate", "up")], axis=1)
        for name in ("qkv", "q", "k", "v", "gate_up", "gate", "up", "down", "o"):
            if name in weights:
                weights[name] = turned(weights[name], 2 if name == "o" else 1)
        result.append(weights)
    return result


def prepare(params: dict, config: ModelConfig, fuse: bool = False, out_major: bool = False) -> dict:
    """Parameters as the programs below take them: {"embed", "unembed", "final_norm", "layers": [one dict a layer]}."""
    unembed = params["embed"] if config.tied_embeddings else params["unembed"]
    return {
        "embed": params["embed"],
        "unembed": blocks.OutMajor(unembed) if out_major else unembed,
        **{name: value for name, value in params.items() if name.startswith("final_norm")},
        "layers": unstacked(params["layers"], config, fuse, out_major),
    }


def layer_axes(config: ModelConfig) -> dict:
    """Logical axes of one layer's weights."""
    return {path[1]: p.axes[1:] for path, p in param_table(config).items() if len(path) == 2}


def fuses(mesh: Mesh) -> bool:
    """Whether q, k, v and gate, up are joined for decoding: not where the mesh splits heads."""
    return mesh.shape["tensor"] == 1


def layer_places(weights: dict, config: ModelConfig, mesh: Mesh) -> dict:
    """Where one layer's weights (arrays or their shapes) lie for decoding: split by tensor, whole along fsdp."""
    axes = layer_axes(config)
    return {name: jax.sharding.NamedSharding(mesh, sharding.spec(axes[name], x.shape, mesh, DECODE_RULES))
            if name in axes else sharding.replicated(mesh) for name, x in weights.items()}
