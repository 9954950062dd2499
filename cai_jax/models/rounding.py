"""The layers' matrices in 8 bits: a quarter of float32, half of bfloat16. Norms, biases and
embeddings stay as they are.

A matrix is `blocks.Int8`, integers up to 127 times a scale an output channel. The sampler may
have a copy like that, and so may the frozen base under adapters (`lora.py`): nothing but adapters
is trained there, so nothing is rounded twice.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from cai_jax.models.blocks import Int8
from cai_jax.models.params import MATRICES


def rounded(weight: jax.Array, axes_in: int) -> Int8:
    """A weight [*in, *out] in 8 bits: the largest magnitude of an output channel becomes 127."""
    axes = tuple(range(axes_in))
    weight = weight.astype(jnp.float32)
    scale = jnp.max(jnp.abs(weight), axis=axes) / 127
    scale = jnp.where(scale > 0, scale, 1.0)
    return Int8(jnp.round(weight / scale).astype(jnp.int8), scale)


def restored(weight: Int8) -> jax.Array:
    """float32 of one layer's weight: values [*in, *out], scale [*out]."""
    return weight.values.astype(jnp.float32) * weight.scale


def is_int8(leaf) -> bool:
    return isinstance(leaf, Int8)


def rounded_matrix(name: str, weight: jax.Array):
    """The layers' parameter of that name, [L, …]: in 8 bits where it is a matrix, on the same
    devices; else as it is."""
    return (
        weight
        if name not in MATRICES
        else _rounder(MATRICES[name], _places(weight, MATRICES[name]))(weight)
    )


@functools.lru_cache(maxsize=64)
def _rounder(axes_in: int, places):
    # One layer at a time: what is needed next to the result has the size of a layer.
    return jax.jit(
        lambda weight: jax.lax.map(functools.partial(rounded, axes_in=axes_in), weight),
        out_shardings=places,
    )


def _places(weight, axes_in: int):
    """Where values and scale of a stacked weight lie: as it does."""
    place = weight.sharding
    if not isinstance(place, NamedSharding):
        return Int8(place, place)
    axes = (*place.spec, *[None] * (len(weight.shape) - len(place.spec)))
    return Int8(place, NamedSharding(place.mesh, PartitionSpec(axes[0], *axes[1 + axes_in :])))


def round_layers(params: dict) -> dict:
    """A decoder's parameters, or {"decoder", "head"}, with the layers' matrices in 8 bits; the
    other arrays are shared."""
    if "decoder" in params:
        return {**params, "decoder": round_layers(params["decoder"])}
    return {
        **params,
        "layers": {name: rounded_matrix(name, weight) for name, weight in params["layers"].items()},
    }


def rounded_shapes(params: dict) -> dict:
    """`round_layers` for ShapeDtypeStructs with shardings."""
    if "decoder" in params:
        return {**params, "decoder": rounded_shapes(params["decoder"])}

    def shapes(name, weight):
        if name not in MATRICES:
            return weight
        places = _places(weight, MATRICES[name])
        scale = (weight.shape[0], *weight.shape[1 + MATRICES[name] :])
        return Int8(
            jax.ShapeDtypeStruct(weight.shape, jnp.int8, sharding=places.values),
            jax.ShapeDtypeStruct(scale, jnp.float32, sharding=places.scale),
        )

    return {
        **params,
        "layers": {name: shapes(name, weight) for name, weight in params["layers"].items()},
    }
