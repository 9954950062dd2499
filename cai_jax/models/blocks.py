"""The pieces of a decoder layer: RMSNorm, rotary positions, attention over whole sequences, SwiGLU.

Pure functions of arrays and of one layer's weights (a dict, see `params.param_table`, without the leading L axis).
`layer` leaves attention to its caller, so that training, scoring and cached decoding share everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.models.config import ModelConfig

MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers (which nobody reads) and not NaN
QUERY_CHUNK = 512  # queries whose attention weights exist at one time


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · scale over the last axis, computed in float32 (Zhang and Sennrich 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype) * scale_D.astype(x.dtype)


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """float32 [Dh/2], radians per position (Su et al. 2021), stretched as the checkpoint's config says."""
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequency = (1.0 / np.float32(config.rope_theta) ** exponent).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return (frequency / scaling.factor).astype(np.float32)
    # Llama 3: wavelengths beyond original/low are divided by the factor, those within original/high kept.
    wavelength = 2 * math.pi / frequency
    low, high, original = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_length
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return ((1 - smooth) * frequency / scaling.factor + smooth * frequency).astype(np.float32)


def rope_tables(positions_BxT: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, 1, Dh/2]: one axis for the heads."""
    angles = positions_BxT[..., None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxTxHxDh: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding in the half-split layout of Hugging Face checkpoints."""
    cos, sin = tables
    a, b = jnp.split(x_BxTxHxDh.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BxTxHxDh.dtype)


def layer(x_BxTxD: jax.Array, weights: dict, config: ModelConfig, tables, attend: Callable) -> jax.Array:
    """One pre-norm block. `attend(q_BxTxHxDh, k_BxTxKxDh, v_BxTxKxDh) -> context_BxTxHxDh` sees rotated queries and
    keys. Projections may come fused, as "qkv" [D, H+2K, Dh] and "gate_up" [D, 2F]: fewer, larger products."""
    H, K = config.num_heads, config.num_kv_heads
    h = rms_norm(x_BxTxD, weights["attn_norm"], config.norm_eps)
    if "qkv" in weights:
        q, k, v = jnp.split(jnp.einsum("btd,dhk->bthk", h, weights["qkv"]), [H, H + K], axis=2)
    else:
        q, k, v = (jnp.einsum("btd,dhk->bthk", h, weights[name]) for name in ("q", "k", "v"))
    if config.qkv_bias:
        q, k, v = q + weights["q_bias"], k + weights["k_bias"], v + weights["v_bias"]
    if config.qk_norm:
        q = rms_norm(q, weights["q_norm"], config.norm_eps)
        k = rms_norm(k, weights["k_norm"], config.norm_eps)
    context = attend(rotate(q, tables), rotate(k, tables), v)
    out = jnp.einsum("bthk,hkd->btd", context, weights["o"])
    x_BxTxD = x_BxTxD + (out + weights["o_bias"] if config.o_bias else out)

    h = rms_norm(x_BxTxD, weights["mlp_norm"], config.norm_eps)
    if "gate_up" in weights:
        gate, up = jnp.split(jnp.einsum("btd,df->btf", h, weights["gate_up"]), 2, axis=-1)
    else:
        gate, up = (jnp.einsum("btd,df->btf", h, weights[name]) for name in ("gate", "up"))
    if config.mlp_bias:
        gate, up = gate + weights["gate_bias"], up + weights["up_bias"]
    out = jnp.einsum("btf,fd->btd", jax.nn.silu(gate) * up, weights["down"])
    return x_BxTxD + (out + weights["down_bias"] if config.mlp_bias else out)


def _attend_chunk(q_BxCxKxGxDh, k_BxSxKxDh, v_BxSxKxDh, allowed_BxCxS):
    scores = jnp.einsum("bckgd,bskd->bkgcs", q_BxCxKxGxDh, k_BxSxKxDh, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed_BxCxS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BxSxKxDh.dtype)
    return jnp.einsum("bkgcs,bskd->bckgd", weights, v_BxSxKxDh)


def causal_attention(q_BxTxHxDh, k_BxTxKxDh, v_BxTxKxDh, mask_BxT, segments_BxT=None, window: int = 0,
                     chunk: int = QUERY_CHUNK) -> jax.Array:
    """Causal softmax attention within segments; context [B, T, H, Dh].

    A query sees the keys at or before it that `mask_BxT` allows, of its own segment, and no farther back than `window`
    tokens (0: no limit). Attention weights exist for `chunk` queries at a time, in the backward pass too (they are
    made again there), and later keys are not even multiplied.
    """
    B, T, H, Dh = q_BxTxHxDh.shape
    K = k_BxTxKxDh.shape[2]
    q = (q_BxTxHxDh * Dh**-0.5).reshape(B, T, K, H // K, Dh)
    index = jnp.arange(T)
    parts = []
    for start in range(0, T, chunk):
        stop = min(start + chunk, T)
        first = max(0, start - window + 1) if window else 0  # what no query of this chunk can see is not multiplied
        ago = index[start:stop, None] - index[None, first:stop]
        near = (ago >= 0) & (ago < window) if window else ago >= 0
        allowed = near[None] & mask_BxT[:, None, first:stop]
        if segments_BxT is not None:
            allowed &= segments_BxT[:, start:stop, None] == segments_BxT[:, None, first:stop]
        keys, values = k_BxTxKxDh[:, first:stop], v_BxTxKxDh[:, first:stop]
        parts.append(jax.checkpoint(_attend_chunk)(q[:, start:stop], keys, values, allowed))
    context = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
    return context.reshape(B, T, H, Dh)
