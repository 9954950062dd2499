"""The programs that sampling runs on the device: prefill of a piece of prompt, decoding of many tokens, scoring.

Keys and values lie, layer by layer, in arrays [B, K, S, Dh]; those of a header that all rows share in [K, P, Dh],
without a batch axis. Attention over the parts (header, own past, new tokens) has one common maximum and one common
denominator, so it is the softmax over their concatenation. What a row computes depends on the number of rows in its
batch but not on its place among them, nor on the others, nor (read in blocks) on S.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cai_jax.losses import token_logprobs
from cai_jax.models import blocks
from cai_jax.models.config import ModelConfig
from cai_jax.models.decoder import unstack
from cai_jax.models.params import param_table
from cai_jax.sampling.draw import draw
from cai_jax.sharding import constrain
from cai_jax.structs import SamplingParams

CACHE_AXES = ("batch", "kv_heads", None, None)


class KeyValues(NamedTuple):
    """keys, values: one array per layer; length: how many positions count, int32 [] for a header [K,P,Dh] and int32
    [B] for rows [B,K,S,Dh]."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array | int


class Rows(NamedTuple):
    """The host's side of a batch of rows: `length` int32 [B], positions in the cache; `token` int32 [B], the one to feed
    next; `index` int32 [B], tokens sampled so far; `left` int32 [B], tokens that may still come, 0 where the slot is idle;
    `key` uint32 [B, 2]."""

    length: jax.Array
    token: jax.Array
    index: jax.Array
    left: jax.Array
    key: jax.Array


# ---------------------------------------------------------------- weights


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


# ---------------------------------------------------------------- attention over parts


def _allowed(query_BxT, key_S, window: int):
    """bool [B, T, S] (or [B, T, S] with B or T of 1): key not after the query, and within the window."""
    ago = query_BxT[:, :, None] - key_S[None, None, :]
    return (ago >= 0) & (ago < window) if window else ago >= 0


def _split_heads(q_BxTxHxDh, config: ModelConfig):
    """Scaled queries, [B, K, G, T, Dh]: the G query heads of each key head together."""
    B, T, H, Dh = q_BxTxHxDh.shape
    K = config.num_kv_heads
    q = (q_BxTxHxDh * blocks.query_scale(config)).reshape(B, T, K, H // K, Dh)
    return q.transpose(0, 2, 3, 1, 4)


def _join_heads(context_BxKxGxTxDh, dtype):
    B, K, G, T, Dh = context_BxKxGxTxDh.shape
    return context_BxKxGxTxDh.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, Dh).astype(dtype)


def _attend(q_BxKxGxTxDh, parts, cap: float | None):
    """(context, peak, total) over all parts: context = Σ exp(score - peak) · value, not yet divided by total.

    parts: (keys, values, allowed [B,T,S]) where keys and values are [B,K,S,Dh] or, shared by all rows, [K,S,Dh]. Scores
    are soft-capped by `cap`.
    """
    scores = []
    for keys, _, allowed in parts:
        how = "bkgtd,ksd->bkgts" if keys.ndim == 3 else "bkgtd,bksd->bkgts"
        score = jnp.einsum(how, q_BxKxGxTxDh, keys, preferred_element_type=jnp.float32)
        scores.append(jnp.where(allowed[:, None, None], blocks.softcap(score, cap), blocks.MASKED))
    peak = functools.reduce(jnp.maximum, [jnp.max(score, axis=-1, keepdims=True) for score in scores])
    total, context = 0.0, 0.0
    for score, (_, values, _) in zip(scores, parts, strict=True):
        mass = jnp.exp(score - peak)
        total += jnp.sum(mass, axis=-1, keepdims=True)
        how = "bkgts,ksd->bkgtd" if values.ndim == 3 else "bkgts,bksd->bkgtd"
        context += jnp.einsum(how, mass.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return context, peak, total


def _attend_blocks(q_BxKxGxDh, keys_BxKxSxDh, values_BxKxSxDh, place_B, window: int, state, block: int,
                   cap: float | None):
    """Goes on from `state` (context [B,K,G,Dh], peak and total [B,K,G,1]) over the row's own keys, up to the one at
    place_B, in blocks of the cache, as far as the longest row reaches.

    The shape of a block is always the same and a masked block changes nothing, not a bit: so neither the size of the
    cache nor the other rows change a row's result.
    """
    sizes = (*keys_BxKxSxDh.shape[:2], block, keys_BxKxSxDh.shape[3])

    def absorb(i, state):
        context, peak, total = state
        keys, values = (jax.lax.dynamic_slice(x, (0, 0, i * block, 0), sizes)
                        for x in (keys_BxKxSxDh, values_BxKxSxDh))
        allowed = _allowed(place_B[:, None], i * block + jnp.arange(block), window)[:, None]
        # Products and sums, not matrix products: with one query they only read memory, and so they need no copies.
        score = jnp.sum((q_BxKxGxDh[:, :, :, None] * keys[:, :, None]).astype(jnp.float32), axis=-1)
        score = jnp.where(allowed, blocks.softcap(score, cap), blocks.MASKED)
        higher = jnp.maximum(peak, jnp.max(score, axis=-1, keepdims=True))
        shrink = jnp.where(higher == peak, 1.0, jnp.exp(peak - higher))
        mass = jnp.where(allowed, jnp.exp(score - higher), 0.0)
        total = total * shrink + jnp.sum(mass, axis=-1, keepdims=True)
        context = context * shrink + jnp.sum(mass[..., None] * values[:, :, None].astype(jnp.float32), axis=3)
        return context, higher, total

    return jax.lax.fori_loop(0, jnp.max(place_B) // block + 1, absorb, state)


def _header_part(header: KeyValues | None, layer: int, positions_BxT, window: int) -> list:
    if header is None:
        return []
    keys = header.keys[layer]
    place_P = jnp.arange(keys.shape[1])
    allowed = _allowed(positions_BxT, place_P, window) & (place_P < header.length)
    return [(keys, header.values[layer], allowed)]


# ---------------------------------------------------------------- prefill and scoring


def _forward(weights, header, past, tokens_BxT, segments_BxT, positions_BxT, config):
    """(x_BxTxD after the last layer, keys, values): new tokens after `header` and `past`, either of which may be None.

    Segments: a token sees those of segment 0 and of its own (options side by side after one prompt).
    """
    tables = blocks.rope_tables(positions_BxT, config)
    x_BxTxD = blocks.embed(weights["embed"], tokens_BxT, config)
    index_T = jnp.arange(tokens_BxT.shape[1])
    own = segments_BxT[:, None, :]
    related = (index_T[:, None] >= index_T[None, :]) & ((own == 0) | (own == segments_BxT[:, :, None]))
    start = 0 if header is None else header.length
    new_keys, new_values = [], []
    for layer, (layer_weights, (window, rope)) in enumerate(zip(weights["layers"], config.layer_kinds, strict=True)):

        def attend(q, k, v, layer=layer, window=window):
            k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
            new_keys.append(k)
            new_values.append(v)
            parts = _header_part(header, layer, positions_BxT, window)
            if past is not None:
                place_S = jnp.arange(past.keys[layer].shape[2])
                allowed = _allowed(positions_BxT - start, place_S, window) & (place_S < past.length[:, None, None])
                parts.append((past.keys[layer], past.values[layer], allowed))
            near = related
            if window:
                near = near & (positions_BxT[:, :, None] - positions_BxT[:, None, :] < window)
            context, _, total = _attend(_split_heads(q, config), [*parts, (k, v, near)], config.attention_softcap)
            return _join_heads(context / total, v.dtype)

        x_BxTxD = blocks.layer(x_BxTxD, layer_weights, config, tables[rope], attend)
    return x_BxTxD, tuple(new_keys), tuple(new_values)


@functools.partial(jax.jit, static_argnames=("config",))
def prefill(weights, header, past, tokens_BxT, config: ModelConfig):
    """Keys and values [B,K,T,Dh] per layer of a piece of prompt that follows `header` and `past`. Padding stands at the
    end of the piece: nothing before it sees it, and the caller does not count it."""
    T = tokens_BxT.shape[1]
    start = (0 if header is None else header.length) + (0 if past is None else past.length[:, None])
    positions_BxT = jnp.broadcast_to(start + jnp.arange(T), tokens_BxT.shape)
    _, keys, values = _forward(weights, header, past, tokens_BxT, jnp.zeros_like(tokens_BxT), positions_BxT, config)
    return keys, values


@functools.partial(jax.jit, static_argnames=("config",))
def score(weights, header, past, tokens_BxT, segments_BxT, offsets_BxT, places_BxN, targets_BxN, config: ModelConfig):
    """log P(targets[b, n]) after the token at places[b, n], float32 [B, N].

    tokens: the end of a prompt (segment 0), then its options side by side (segments 1, 2, …); offsets int32 [B, T]:
    each token's distance from the first of the piece in its own text.
    """
    start = (0 if header is None else header.length) + (0 if past is None else past.length[:, None])
    x_BxTxD, _, _ = _forward(weights, header, past, tokens_BxT, segments_BxT, start + offsets_BxT, config)
    x_BxNxD = jnp.take_along_axis(x_BxTxD, places_BxN[..., None], axis=1)
    hidden = blocks.norm(x_BxNxD, weights, "final_norm", config)
    unembed = weights["unembed"]
    unembed = unembed.matrix if isinstance(unembed, blocks.OutMajor) else unembed
    return token_logprobs(hidden, unembed, targets_BxN, softcap=config.final_softcap)


# ---------------------------------------------------------------- the cache


def empty_cache(config: ModelConfig, batch: int, size: int, dtype) -> tuple[tuple, tuple]:
    """Zeros (keys, values), [B, K, S, Dh] per layer."""
    shape = (batch, config.num_kv_heads, size, config.head_dim)

    def zeros():
        return tuple(constrain(jnp.zeros(shape, dtype), CACHE_AXES) for _ in range(config.num_layers))

    return zeros(), zeros()


empty_cache = jax.jit(empty_cache, static_argnums=(0, 1, 2, 3))


@functools.partial(jax.jit, donate_argnums=(0,))
def insert(cache, piece, row, start):
    """Writes the keys and values [1, K, T, Dh] of a piece into row `row` of the cache, from position `start`."""
    place = (row, 0, start, 0)
    return jax.tree.map(
        lambda whole, part: constrain(jax.lax.dynamic_update_slice(whole, part, place), CACHE_AXES), cache, piece
    )


@functools.partial(jax.jit, static_argnums=(1,))
def resize(cache, size: int):
    """The cache with S = size: cut, or padded with zeros."""

    def change(x):
        x = x[:, :, :size]
        return constrain(jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, 0))), CACHE_AXES)

    return jax.tree.map(change, cache)


# ---------------------------------------------------------------- decode


def _write(cache_BxKxSxDh, new_BxKxDh, place_B):
    """Each row's new entry at its own place, in the same memory."""
    update = jax.vmap(lambda row, new, place: jax.lax.dynamic_update_slice(row, new[:, None], (0, place, 0)))
    return update(cache_BxKxSxDh, new_BxKxDh, place_B)


def _step(weights, header, cache, length_B, token_B, config, block):
    """Feeds one token per row: (logits float32 [B, V] for the next, cache with the token's keys and values)."""
    start = 0 if header is None else header.length
    positions_Bx1 = (start + length_B)[:, None]
    tables, cap = blocks.rope_tables(positions_Bx1, config), config.attention_softcap
    x_Bx1xD = blocks.embed(weights["embed"], token_B[:, None], config)
    keys, values = list(cache[0]), list(cache[1])
    for layer, (layer_weights, (window, rope)) in enumerate(zip(weights["layers"], config.layer_kinds, strict=True)):

        def attend(q, k, v, layer=layer, window=window):
            keys[layer] = _write(keys[layer], k[:, 0], length_B)
            values[layer] = _write(values[layer], v[:, 0], length_B)
            q = _split_heads(q, config)
            parts = _header_part(header, layer, positions_Bx1, window)
            if block == 0:
                allowed = _allowed(length_B[:, None], jnp.arange(keys[layer].shape[2]), window)
                context, _, total = _attend(q, [*parts, (keys[layer], values[layer], allowed)], cap)
                return _join_heads(context / total, v.dtype)
            q = q[:, :, :, 0]
            if parts:
                state = tuple(x[:, :, :, 0] for x in _attend(q[:, :, :, None], parts, cap))
            else:
                state = jnp.zeros(q.shape, jnp.float32), jnp.full((*q.shape[:3], 1), blocks.MASKED), jnp.zeros((*q.shape[:3], 1))
            context, _, total = _attend_blocks(q, keys[layer], values[layer], length_B, window, state, block, cap)
            return _join_heads((context / total)[:, :, :, None], v.dtype)

        x_Bx1xD = blocks.layer(x_Bx1xD, layer_weights, config, tables[rope], attend)
    hidden_Bx1xD = blocks.norm(x_Bx1xD, weights, "final_norm", config)
    if isinstance(weights["unembed"], blocks.OutMajor):
        logits_Bx1xV = weights["unembed"](hidden_Bx1xD)
    else:
        logits_Bx1xV = jnp.einsum("btd,vd->btv", hidden_Bx1xD, weights["unembed"], preferred_element_type=jnp.float32)
    logits_BxV = blocks.softcap(logits_Bx1xV[:, 0].astype(jnp.float32), config.final_softcap)
    return logits_BxV, (tuple(keys), tuple(values))


@functools.partial(jax.jit, static_argnames=("config", "sampling", "steps", "eos_ids", "block"), donate_argnums=(2,))
def decode(weights, header, cache, rows: Rows, *, config: ModelConfig, sampling: SamplingParams, steps: int,
           eos_ids: tuple[int, ...], block: int):
    """Up to `steps` tokens for every row with some left; ends early when no row has. `block`: the cache is read in
    blocks of so many positions, as far as the longest row reaches; 0: all at once.

    Returns (cache, tokens int32 [steps, B], logprobs float32 [steps, B], count int32 [B] of tokens that are valid). A
    row ends at EOS or when none is left; the K/V of the last token sampled is not in the cache yet.
    """
    B = rows.token.shape[0]

    def more(carry):
        return (carry[0] < steps) & jnp.any(carry[2].left > 0)

    def step(carry):
        i, cache, rows, tokens, logprobs = carry
        logits_BxV, cache = _step(weights, header, cache, rows.length, rows.token, config, block)
        token_B, logprob_B = draw(logits_BxV, rows.key, rows.index, sampling)
        active_B = rows.left > 0
        advance_B = active_B.astype(jnp.int32)
        ended_B = functools.reduce(jnp.logical_or, [token_B == eos for eos in eos_ids], jnp.zeros(B, bool))
        rows = rows._replace(
            length=rows.length + advance_B,
            token=jnp.where(active_B, token_B, rows.token),
            index=rows.index + advance_B,
            left=jnp.where(ended_B, 0, rows.left - advance_B),
        )
        return i + 1, cache, rows, tokens.at[i].set(token_B), logprobs.at[i].set(logprob_B)

    tokens, logprobs = jnp.zeros((steps, B), jnp.int32), jnp.zeros((steps, B), jnp.float32)
    _, cache, after, tokens, logprobs = jax.lax.while_loop(more, step, (0, cache, rows, tokens, logprobs))
    return cache, tokens, logprobs, after.index - rows.index
