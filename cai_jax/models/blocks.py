"""The pieces of a decoder layer: norms, rotary positions, attention over sequences, MLP.

Pure functions of arrays and of one layer's weights (a dict, see `params.param_table`, without the
leading L axis). `layer` leaves attention to its caller, so that training, scoring and cached
decoding share everything else.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.core.sharding import later
from cai_jax.models.config import ModelConfig

MASKED = (
    -1e30
)  # finite, so that a row with nothing to attend to gives numbers (which nobody reads) and not NaN
QUERY_CHUNK = 512  # queries whose attention weights exist at one time


class OutMajor(NamedTuple):
    """A weight kept as [out, in], each side flattened. On a CPU the product with few tokens is
    1.2 times as fast so, if the tokens stand in the columns of the other operand."""

    matrix: jax.Array

    def __call__(self, x_BxTxI: jax.Array) -> jax.Array:
        B, T, width = x_BxTxI.shape
        x_MxI = x_BxTxI.reshape(B * T, width)
        if B * T > 128:
            return jnp.einsum("mi,oi->mo", x_MxI, self.matrix).reshape(B, T, -1)
        # The barriers keep the compiler from folding the transpositions into the product, where
        # they cost more.
        out_OxM = self.matrix @ jax.lax.optimization_barrier(x_MxI.T)
        return jax.lax.optimization_barrier(out_OxM).T.reshape(B, T, -1)


class LowRank(NamedTuple):
    """A weight [*in, *out] that acts as weight + a·b, with a [*in, R] and b [R, *out] (see
    `models/lora.py`)."""

    weight: jax.Array
    a: jax.Array
    b: jax.Array


class Int8(NamedTuple):
    """A weight [*in, *out] rounded to 8 bits: values int8 [*in, *out] times scale float32 [*out],
    one an output channel."""

    values: jax.Array
    scale: jax.Array


def project(x: jax.Array, weight, shape: tuple[int, ...], axes_in: int = 1) -> jax.Array:
    """A projection.

    Args:
      x: [B, T, *in].
      weight: [*in, *shape], or OutMajor, Int8, or LowRank.
      shape: of the output.
      axes_in: the number of axes in *in.
    Returns:
      [B, T, *shape].
    """
    if isinstance(weight, Int8):
        return _int8_product(x, *weight, axes_in)
    if isinstance(weight, LowRank):
        change = jnp.tensordot(jnp.tensordot(x, weight.a, axes_in), weight.b, 1)
        return project(x, weight.weight, shape, axes_in) + change
    if isinstance(weight, OutMajor):
        B, T = x.shape[:2]
        return weight(x.reshape(B, T, -1)).reshape(B, T, *shape)
    return jnp.tensordot(x, weight, axes_in)


@functools.partial(jax.checkpoint, static_argnums=3)
def _int8_product(x: jax.Array, values: jax.Array, scale: jax.Array, axes_in: int) -> jax.Array:
    # The backward pass makes the weight in x's type again: kept, those of all layers would be a
    # second base.
    product = jnp.tensordot(x, values.astype(x.dtype), axes_in)
    return (product.astype(jnp.float32) * scale).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · scale over the last axis, computed in float32 (Zhang and Sennrich
    2019). The backward pass keeps x and one number a position."""
    return _rms_forward(x, scale_D, eps)[0]


def _rms_forward(x, scale_D, eps):
    y = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * inverse).astype(x.dtype) * scale_D.astype(x.dtype), (x, scale_D, inverse)


def _rms_backward(eps, kept, grad):
    x, scale_D, inverse = kept
    y, grad = x.astype(jnp.float32), grad.astype(jnp.float32)
    scaled = grad * scale_D.astype(jnp.float32)
    along = jnp.mean(scaled * y, axis=-1, keepdims=True) * (inverse * inverse * inverse)
    grad_scale = jnp.sum(grad * y * inverse, axis=tuple(range(x.ndim - 1)))
    return (scaled * inverse - y * along).astype(x.dtype), grad_scale.astype(scale_D.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


def norm(x: jax.Array, weights: dict, name: str, config: ModelConfig) -> jax.Array:
    """The family's norm over the last axis.

    Args:
      x: […, D].
      weights: scale `weights[name]`, and for LayerNorm bias `weights[name + "_bias"]`, both [D].
      name: of the norm.
      config: says which norm.
    Returns:
      […, D] in x's dtype.
    """
    scale_D = weights[name]
    if config.norm == "rms" and not config.norm_offset:
        return rms_norm(x, scale_D, config.norm_eps)
    y = x.astype(jnp.float32)
    if config.norm == "layer":
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.norm_eps)
    y = y * (scale_D.astype(jnp.float32) + (1.0 if config.norm_offset else 0.0))
    if config.norm == "layer":
        y = y + weights[name + "_bias"].astype(jnp.float32)
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def remade(function, config: ModelConfig, x: jax.Array, weights: dict):
    """A norm and the products that read it: the backward pass keeps x and not what is normed.

    Args:
      function: (x, weights, config) → arrays.
      config, x, weights: its arguments.
    Returns:
      function(x, weights, config).
    """
    return function(x, weights, config)


def _remade_forward(function, config, x, weights):
    return function(x, weights, config), (x, weights)


def _remade_backward(function, config, kept, grads):
    x, weights = kept
    return jax.vjp(functools.partial(function, config=config), later(x, grads), weights)[1](grads)


remade.defvjp(_remade_forward, _remade_backward)


def _only(weights: dict, *names: str) -> dict:
    return {name: weights[name] for name in weights if name.removesuffix("_bias") in names}


def _qk_norm(x_BxTxHxDh, weights: dict, name: str, config: ModelConfig):
    if config.qk_norm == "head":
        return norm(x_BxTxHxDh, weights, name, config)
    B, T, H, Dh = x_BxTxHxDh.shape
    scale = {name: weights[name].reshape(H * Dh)}
    return norm(x_BxTxHxDh.reshape(B, T, H * Dh), scale, name, config).reshape(B, T, H, Dh)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap · tanh(x / cap); x where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def activate(x: jax.Array, name: str) -> jax.Array:
    """The activation that config.json names so."""
    if name == "silu":
        return jax.nn.silu(x)
    return jax.nn.gelu(x, approximate=name != "gelu")


def embed(table_VxD: jax.Array, tokens_BxT: jax.Array, config: ModelConfig) -> jax.Array:
    """[B, T, D]: what the first layer reads."""
    x_BxTxD = jnp.take(table_VxD, tokens_BxT, axis=0)
    return (
        x_BxTxD
        if config.embed_scale == 1.0
        else x_BxTxD * jnp.asarray(config.embed_scale, x_BxTxD.dtype)
    )


def query_scale(config: ModelConfig) -> float:
    """What queries are multiplied with."""
    return (config.query_scalar or config.head_dim) ** -0.5


def rope_frequencies(config: ModelConfig, kind: str = "global") -> np.ndarray:
    """float32 [R/2], radians per position of the R rotated channels (Su et al. 2021), stretched as
    the checkpoint's config says; those of the "local" layers are not stretched."""
    size = config.rotary_dim or config.head_dim
    exponent = np.arange(0, size, 2, dtype=np.float32) / size
    theta = config.local_rope_theta if kind == "local" else config.rope_theta
    frequency = (1.0 / np.float32(theta) ** exponent).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None or kind == "local":
        return frequency
    if scaling.kind == "linear":
        return (frequency / scaling.factor).astype(np.float32)
    # Llama 3: wavelengths beyond original/low are divided by the factor, those within original/high
    # kept.
    wavelength = 2 * math.pi / frequency
    low, high, original = (
        scaling.low_freq_factor,
        scaling.high_freq_factor,
        scaling.original_max_length,
    )
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - smooth) * frequency / scaling.factor + smooth * frequency).astype(np.float32)


def rope_tables(positions_BxT: jax.Array, config: ModelConfig) -> dict:
    """{kind of layer: (cos, sin)}, float32 [B, T, 1, R/2]: one axis for the heads. Of kind "none"
    there is nothing."""
    tables = {"none": None}
    for kind in sorted({rope for _, rope in config.layer_kinds} - {"none"}):
        angles = positions_BxT[..., None, None].astype(jnp.float32) * rope_frequencies(config, kind)
        tables[kind] = jnp.cos(angles), jnp.sin(angles)
    return tables


def rotate(x_BxTxHxDh: jax.Array, tables: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Rotary embedding of the first R channels in the half-split layout of Hugging Face
    checkpoints."""
    if tables is None:
        return x_BxTxHxDh
    cos, sin = tables
    half = cos.shape[-1]
    x = x_BxTxHxDh[..., : 2 * half].astype(jnp.float32)
    a, b = jnp.split(x, 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(
        x_BxTxHxDh.dtype
    )
    if 2 * half == x_BxTxHxDh.shape[-1]:
        return rotated
    return jnp.concatenate([rotated, x_BxTxHxDh[..., 2 * half :]], axis=-1)


def layer(
    x_BxTxD: jax.Array, weights: dict, config: ModelConfig, tables, attend: Callable
) -> jax.Array:
    """One block of the decoder.

    Args:
      x_BxTxD: what goes in.
      weights: of this layer. Projections may come fused, as "qkv" [D, H+2K, Dh] and "gate_up"
        [D, 2F]: fewer, larger products.
      config: of the model.
      tables: the (cos, sin) of this layer's kind.
      attend: (q_BxTxHxDh, k_BxTxKxDh, v_BxTxKxDh) → context_BxTxHxDh, of rotated queries and keys.
    Returns:
      [B, T, D].
    """
    after = config.block_norms != "pre"

    def leave(x, name):
        return norm(x, weights, name, config) if after else x

    attention = leave(_attention(x_BxTxD, weights, config, tables, attend), "attn_post_norm")
    if config.parallel_blocks:
        return x_BxTxD + attention + leave(_mlp(x_BxTxD, weights, config), "mlp_post_norm")
    x_BxTxD = x_BxTxD + attention
    return x_BxTxD + leave(_mlp(x_BxTxD, weights, config), "mlp_post_norm")


def _enter(x, weights: dict, name: str, config: ModelConfig):
    return norm(x, weights, name, config) if config.block_norms != "post" else x


def _queries(x_BxTxD, weights: dict, config: ModelConfig):
    """Queries, keys and values of a layer's input, neither normed nor rotated."""
    h_BxTxD = _enter(x_BxTxD, weights, "attn_norm", config)
    H, K, Dh = config.num_heads, config.num_kv_heads, config.head_dim
    if "qkv" in weights:
        q, k, v = jnp.split(project(h_BxTxD, weights["qkv"], (H + 2 * K, Dh)), [H, H + K], axis=2)
    else:
        q, k, v = (
            project(h_BxTxD, weights[name], (n, Dh)) for name, n in (("q", H), ("k", K), ("v", K))
        )
    if config.qkv_bias:
        q, k, v = q + weights["q_bias"], k + weights["k_bias"], v + weights["v_bias"]
    return q, k, v


def _attention(x_BxTxD, weights: dict, config: ModelConfig, tables, attend: Callable):
    q, k, v = remade(_queries, config, x_BxTxD, _only(weights, "attn_norm", "qkv", "q", "k", "v"))
    if config.qk_norm:
        q, k = _qk_norm(q, weights, "q_norm", config), _qk_norm(k, weights, "k_norm", config)
    context = attend(rotate(q, tables), rotate(k, tables), v)
    out = project(context, weights["o"], (config.width,), axes_in=2)
    return out + weights["o_bias"] if config.o_bias else out


def _gates(x_BxTxD, weights: dict, config: ModelConfig):
    """The two factors of a gated MLP before the activation; (None, up) of one without gates."""
    h_BxTxD = _enter(x_BxTxD, weights, "mlp_norm", config)
    if "gate_up" in weights:
        gate, up = jnp.split(project(h_BxTxD, weights["gate_up"], (2 * config.ffw,)), 2, axis=-1)
    else:
        up = project(h_BxTxD, weights["up"], (config.ffw,))
        gate = project(h_BxTxD, weights["gate"], (config.ffw,)) if config.gated_mlp else None
    if config.mlp_bias:
        up = up + weights["up_bias"]
        gate = gate + weights["gate_bias"] if config.gated_mlp else None
    return gate, up


def _mlp(x_BxTxD, weights: dict, config: ModelConfig):
    gate, up = remade(_gates, config, x_BxTxD, _only(weights, "mlp_norm", "gate_up", "gate", "up"))
    if config.gated_mlp:
        out = _gated_down(gate, up, weights["down"], config.activation, config.width)
    else:
        out = project(activate(up, config.activation), weights["down"], (config.width,))
    return out + weights["down_bias"] if config.mlp_bias else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _gated_down(gate, up, down, activation: str, width: int):
    """(activation(gate) · up) times down. The backward pass keeps gate and up only, a third of what
    it would."""
    return project(activate(gate, activation) * up, down, (width,))


def _gated_down_forward(gate, up, down, activation, width):
    return _gated_down(gate, up, down, activation, width), (gate, up, down)


def _gated_down_backward(activation, width, kept, grad):
    gate, up, down = kept
    # Written in another way than in the forward pass: XLA would find it there, and keep it instead
    # of making it again.
    again = (
        (lambda x: x * (0.5 + 0.5 * jnp.tanh(0.5 * x)))
        if activation == "silu"
        else lambda x: activate(x, activation)
    )
    active, of_gate = jax.vjp(again, gate)
    _, of_product = jax.vjp(lambda inner, down: project(inner, down, (width,)), active * up, down)
    grad_inner, grad_down = of_product(grad)
    return of_gate(grad_inner * up)[0], grad_inner * active, grad_down


_gated_down.defvjp(_gated_down_forward, _gated_down_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend_chunk(q_BxCxKxGxDh, k_BxSxKxDh, v_BxSxKxDh, allowed_BxCxS, cap):
    """Context [B, C, K, G, Dh] of scaled queries. The backward pass keeps no weights: it makes them
    again from the log-sum-exps (Dao et al. 2022, section 3.1)."""
    return _attend_forward(q_BxCxKxGxDh, k_BxSxKxDh, v_BxSxKxDh, allowed_BxCxS, cap)[0]


def _by_key_head(x_BxCxKxGxDh):
    """[B, K, G·C, Dh]: one matrix product a key head, of all that its queries have together."""
    B, C, K, G, Dh = x_BxCxKxGxDh.shape
    return x_BxCxKxGxDh.transpose(0, 2, 3, 1, 4).reshape(B, K, G * C, Dh)


def _by_position(x_BxKxMxDh, C: int):
    B, K, M, Dh = x_BxKxMxDh.shape
    return x_BxKxMxDh.reshape(B, K, M // C, C, Dh).transpose(0, 3, 1, 2, 4)


def _attend_forward(q_BxCxKxGxDh, k_BxSxKxDh, v_BxSxKxDh, allowed_BxCxS, cap):
    # Operands as a CPU's products want them (a third less time than with the axes where they come
    # from).
    B, C, K, G, Dh = q_BxCxKxGxDh.shape
    q_BxKxMxDh = _by_key_head(q_BxCxKxGxDh)
    scores = jnp.einsum(
        "bkmd,bkds->bkms",
        q_BxKxMxDh,
        k_BxSxKxDh.transpose(0, 2, 3, 1),
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(
        allowed_BxCxS[:, None, None], softcap(scores.reshape(B, K, G, C, -1), cap), MASKED
    )
    lse_BxKxGxC = jax.nn.logsumexp(scores, axis=-1)
    weights = (
        jnp.exp(scores - lse_BxKxGxC[..., None]).astype(v_BxSxKxDh.dtype).reshape(B, K, G * C, -1)
    )
    context = _by_position(
        jnp.einsum("bkms,bksd->bkmd", weights, v_BxSxKxDh.transpose(0, 2, 1, 3)), C
    )
    return context, (q_BxCxKxGxDh, k_BxSxKxDh, v_BxSxKxDh, allowed_BxCxS, context, lse_BxKxGxC)


def _attend_backward(cap, kept, grad_BxCxKxGxDh):
    # Scores with the keys first: for XLA other scores than those of the forward pass, which it
    # would keep instead.
    q, k, v, allowed_BxCxS, context, lse_BxKxGxC = kept
    B, C, K, G, Dh = q.shape
    # Of the context as it is kept for the product that follows: the other order would be kept as
    # well.
    delta_BxCxKxG = jnp.sum(
        grad_BxCxKxGxDh.astype(jnp.float32) * context.astype(jnp.float32), axis=-1
    )
    delta = delta_BxCxKxG.transpose(0, 2, 3, 1).reshape(B, K, 1, G * C)
    q, grad = _by_key_head(q), _by_key_head(grad_BxCxKxGxDh)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    allowed_BxSxGC = jnp.tile(allowed_BxCxS.swapaxes(1, 2), (1, 1, G))[:, None]
    scores = softcap(jnp.einsum("bksd,bkmd->bksm", k, q, preferred_element_type=jnp.float32), cap)
    weights = jnp.where(allowed_BxSxGC, jnp.exp(scores - lse_BxKxGxC.reshape(B, K, 1, G * C)), 0.0)
    slopes = weights * (
        jnp.einsum("bksd,bkmd->bksm", v, grad, preferred_element_type=jnp.float32) - delta
    )
    if cap is not None:
        slopes = slopes * (1.0 - (scores / cap) ** 2)
    slopes, weights = slopes.astype(q.dtype), weights.astype(v.dtype)
    grad_v = jnp.einsum("bksm,bkmd->bksd", weights, grad)
    grad_k = jnp.einsum("bksm,bkmd->bksd", slopes, q)
    grad_q = jnp.einsum("bksm,bksd->bkmd", slopes, k)
    return _by_position(grad_q, C), grad_k.transpose(0, 2, 1, 3), grad_v.transpose(0, 2, 1, 3), None


_attend_chunk.defvjp(_attend_forward, _attend_backward)


def causal_attention(
    q_BxTxHxDh,
    k_BxTxKxDh,
    v_BxTxKxDh,
    mask_BxT,
    segments_BxT=None,
    window: int = 0,
    chunk: int = QUERY_CHUNK,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Causal softmax attention within segments.

    Args:
      q_BxTxHxDh, k_BxTxKxDh, v_BxTxKxDh: rotated queries and keys, and values.
      mask_BxT: the keys that may be seen.
      segments_BxT: a query sees its own segment only.
      window: tokens that a query sees, itself included; 0: no limit.
      chunk: queries whose attention weights exist at a time.
      scale: of q·k; None: Dh^-0.5.
      cap: of the scores, see `softcap`.
    Returns:
      Context [B, T, H, Dh].

    Attention weights exist for `chunk` queries at a time, in the backward pass too (they
    are recomputed there), and later keys are not even multiplied.
    """
    B, T, H, Dh = q_BxTxHxDh.shape
    K = k_BxTxKxDh.shape[2]
    q = (q_BxTxHxDh * (scale or Dh**-0.5)).reshape(B, T, K, H // K, Dh)
    index = jnp.arange(T)
    parts = []
    for start in range(0, T, chunk):
        stop = min(start + chunk, T)
        first = (
            max(0, start - window + 1) if window else 0
        )  # what no query of this chunk can see is not multiplied
        ago = index[start:stop, None] - index[None, first:stop]
        near = (ago >= 0) & (ago < window) if window else ago >= 0
        allowed = near[None] & mask_BxT[:, None, first:stop]
        if segments_BxT is not None:
            allowed &= segments_BxT[:, start:stop, None] == segments_BxT[:, None, first:stop]
        keys, values = k_BxTxKxDh[:, first:stop], v_BxTxKxDh[:, first:stop]
        parts.append(_attend_chunk(q[:, start:stop], keys, values, allowed, cap))
    context = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
    return context.reshape(B, T, H, Dh)
