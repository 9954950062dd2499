"""The programs that sampling runs on the device: prefill of a piece of prompt, decoding of many
tokens, scoring.

Keys and values lie, layer by layer, in arrays [B, K, S, Dh]; those of a header that all rows share
in [K, P, Dh], without a batch axis. Attention over the parts (header, own past, new tokens) has one
common maximum and one common denominator, so it is the softmax over their concatenation. What a row
computes depends on the number of rows in its batch but not on its place among them, nor on the
others, nor (read in blocks) on S.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cai_jax.core.losses import token_logprobs
from cai_jax.core.sharding import constrain
from cai_jax.engine import attention, flash
from cai_jax.engine.draw import draw
from cai_jax.engine.weights import unembedding
from cai_jax.models import blocks
from cai_jax.models.config import ModelConfig
from cai_jax.structs import SamplingParams

CACHE_AXES = ("batch", "kv_heads", None, None)


class KeyValues(NamedTuple):
    """keys, values: one array per layer; length: how many positions count, int32 [] for a header
    [K,P,Dh] and int32 [B] for rows [B,K,S,Dh]."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array | int


class Rows(NamedTuple):
    """The host's side of a batch of rows: `length` int32 [B], positions in the cache; `token` int32
    [B], the one to feed next; `index` int32 [B], tokens sampled so far; `left` int32 [B], tokens
    that may still come, 0 where the slot is idle; `key` uint32 [B, 2]."""

    length: jax.Array
    token: jax.Array
    index: jax.Array
    left: jax.Array
    key: jax.Array


# ---------------------------------------------------------------- prefill and scoring


def _header_part(header: KeyValues | None, layer: int, positions_BxT, window: int) -> list:
    if header is None:
        return []
    keys = header.keys[layer]
    place_P = jnp.arange(keys.shape[1])
    allowed = attention.visible(positions_BxT, place_P, window) & (place_P < header.length)
    return [(keys, header.values[layer], allowed)]


def _forward(weights, header, past, tokens_BxT, ends_BxT, positions_BxT, config, kernel):
    """(x_BxTxD after the last layer, keys, values): new tokens after `header` and `past`, either of
    which may be None.

    A token sees those before it whose ends lie behind it (see `packing`), and all of them where
    ends is None.
    """
    tables = blocks.rope_tables(positions_BxT, config)
    x_BxTxD = blocks.embed(weights["embed"], tokens_BxT, config)
    index_T = jnp.arange(tokens_BxT.shape[1])
    related = (index_T[:, None] >= index_T[None, :])[None]
    if ends_BxT is not None:
        related = related & (index_T[:, None] < ends_BxT[:, None, :])
    start = 0 if header is None else header.length
    new_keys, new_values = [], []
    for layer, (layer_weights, (window, rope)) in enumerate(
        zip(weights["layers"], config.layer_kinds, strict=True)
    ):

        def attend(q, k, v, layer=layer, window=window):
            k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
            new_keys.append(k)
            new_values.append(v)
            parts = _header_part(header, layer, positions_BxT, window)
            if past is not None:
                place_S = jnp.arange(past.keys[layer].shape[2])
                allowed = attention.visible(positions_BxT - start, place_S, window) & (
                    place_S < past.length[:, None, None]
                )
                parts.append((past.keys[layer], past.values[layer], allowed))
            near = related
            if window:
                near = near & (positions_BxT[:, :, None] - positions_BxT[:, None, :] < window)
            parts.append((k, v, near))
            q, cap = attention.split_heads(q, config), config.attention_softcap
            if kernel in flash.KERNELS:
                return attention.join_heads(flash.attend(q, parts, cap, kernel), v.dtype)
            context, _, total = attention.attend(q, parts, cap, by_head=kernel == "by_head")
            return attention.join_heads(context / total, v.dtype)

        x_BxTxD = blocks.layer(x_BxTxD, layer_weights, config, tables[rope], attend)
    return x_BxTxD, tuple(new_keys), tuple(new_values)


@functools.partial(jax.jit, static_argnames=("config", "kernel"))
def prefill(weights, header, past, tokens_BxT, config: ModelConfig, kernel: str = ""):
    """Keys and values [B,K,T,Dh] per layer of a piece of prompt that follows `header` and `past`.
    Padding stands at the end of the piece: nothing before it sees it, and the caller does not count
    it. `kernel`: one of flash.KERNELS, or "by_head" (see `attention.attend`), or "" for XLA's
    products as they come."""
    T = tokens_BxT.shape[1]
    start = (0 if header is None else header.length) + (0 if past is None else past.length[:, None])
    positions_BxT = jnp.broadcast_to(start + jnp.arange(T), tokens_BxT.shape)
    _, keys, values = _forward(
        weights, header, past, tokens_BxT, None, positions_BxT, config, kernel
    )
    return keys, values


@functools.partial(jax.jit, static_argnames=("config", "kernel"))
def score(
    weights,
    header,
    past,
    tokens_BxT,
    ends_BxT,
    offsets_BxT,
    places_BxN,
    targets_BxN,
    config: ModelConfig,
    kernel: str = "",
):
    """log P(targets[b, n]) after the token at places[b, n], float32 [B, N].

    tokens, ends, offsets, places, targets as in `packing.Row`; kernel as in `prefill`.
    """
    start = (0 if header is None else header.length) + (0 if past is None else past.length[:, None])
    x_BxTxD, _, _ = _forward(
        weights, header, past, tokens_BxT, ends_BxT, start + offsets_BxT, config, kernel
    )
    x_BxNxD = jnp.take_along_axis(x_BxTxD, places_BxN[..., None], axis=1)
    hidden = blocks.norm(x_BxNxD, weights, "final_norm", config)
    return token_logprobs(
        hidden, unembedding(weights, hidden.dtype), targets_BxN, softcap=config.final_softcap
    )


# ---------------------------------------------------------------- the cache


def empty_cache(
    config: ModelConfig, batch: int, size: int, dtype, turned: bool = False
) -> tuple[tuple, tuple]:
    """Zeros (keys, values), [B, K, S, Dh] per layer; `turned`: the keys [B, K, Dh, S], as reading
    in blocks wants them."""
    shape = (batch, config.num_kv_heads, size, config.head_dim)

    def zeros(shape):
        return tuple(
            constrain(jnp.zeros(shape, dtype), CACHE_AXES) for _ in range(config.num_layers)
        )

    return zeros((*shape[:2], *shape[:1:-1]) if turned else shape), zeros(shape)


empty_cache = jax.jit(empty_cache, static_argnums=(0, 1, 2, 3, 4))


@functools.partial(jax.jit, static_argnames=("turned",), donate_argnums=(0,))
def insert(cache, piece, row, start, turned: bool = False):
    """Writes the keys and values [1, K, T, Dh] of a piece into row `row` of the cache, from
    position `start`."""

    def write(whole, part, place):
        return constrain(jax.lax.dynamic_update_slice(whole, part, place), CACHE_AXES)

    keys, values = piece
    if turned:
        keys = tuple(
            write(whole, part.swapaxes(2, 3), (row, 0, 0, start))
            for whole, part in zip(cache[0], keys, strict=True)
        )
    else:
        keys = tuple(
            write(whole, part, (row, 0, start, 0))
            for whole, part in zip(cache[0], keys, strict=True)
        )
    return keys, tuple(
        write(whole, part, (row, 0, start, 0)) for whole, part in zip(cache[1], values, strict=True)
    )


@functools.partial(jax.jit, static_argnums=(1,))
def resize(cache, size: int):
    """The cache with S = size: cut, or padded with zeros."""

    def change(x):
        x = x[:, :, :size]
        return constrain(jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, 0))), CACHE_AXES)

    return jax.tree.map(change, cache)


# ---------------------------------------------------------------- decode


def _write(cache, new_BxKxDh, place_B, turned: bool = False):
    """Each row's new entry at its own place of the cache [B,K,S,Dh], or `turned` [B,K,Dh,S], in the
    same memory."""
    axis = 2 if turned else 1
    update = jax.vmap(
        lambda row, new, place: jax.lax.dynamic_update_slice_in_dim(
            row, jnp.expand_dims(new, axis), place, axis
        )
    )
    return update(cache, new_BxKxDh, place_B)


def _step(weights, header, cache, length_B, token_B, config, block):
    """Feeds one token per row: (logits float32 [B, V] for the next, cache with the token's keys and
    values)."""
    start = 0 if header is None else header.length
    positions_Bx1 = (start + length_B)[:, None]
    tables, cap = blocks.rope_tables(positions_Bx1, config), config.attention_softcap
    x_Bx1xD = blocks.embed(weights["embed"], token_B[:, None], config)
    keys, values = list(cache[0]), list(cache[1])
    for layer, (layer_weights, (window, rope)) in enumerate(
        zip(weights["layers"], config.layer_kinds, strict=True)
    ):

        def attend(q, k, v, layer=layer, window=window):
            keys[layer] = _write(keys[layer], k[:, 0], length_B, turned=block > 0)
            values[layer] = _write(values[layer], v[:, 0], length_B)
            q = attention.split_heads(q, config)
            parts = _header_part(header, layer, positions_Bx1, window)
            if block == 0:
                allowed = attention.visible(
                    length_B[:, None], jnp.arange(keys[layer].shape[2]), window
                )
                context, _, total = attention.attend(
                    q, [*parts, (keys[layer], values[layer], allowed)], cap
                )
                return attention.join_heads(context / total, v.dtype)
            q = q[:, :, :, 0]
            if parts:
                state = tuple(x[:, :, :, 0] for x in attention.attend(q[:, :, :, None], parts, cap))
            else:
                state = (
                    jnp.zeros(q.shape, jnp.float32),
                    jnp.full((*q.shape[:3], 1), blocks.MASKED),
                    jnp.zeros((*q.shape[:3], 1)),
                )
            context, _, total = attention.attend_blocks(
                q, keys[layer], values[layer], length_B, window, state, block, cap
            )
            return attention.join_heads((context / total)[:, :, :, None], v.dtype)

        x_Bx1xD = blocks.layer(x_Bx1xD, layer_weights, config, tables[rope], attend)
    hidden_Bx1xD = blocks.norm(x_Bx1xD, weights, "final_norm", config)
    if isinstance(weights["unembed"], (blocks.OutMajor, blocks.Int8)):
        logits_Bx1xV = blocks.project(hidden_Bx1xD, weights["unembed"], (config.vocab_size,))
    else:
        logits_Bx1xV = jnp.einsum(
            "btd,vd->btv", hidden_Bx1xD, weights["unembed"], preferred_element_type=jnp.float32
        )
    logits_BxV = blocks.softcap(logits_Bx1xV[:, 0].astype(jnp.float32), config.final_softcap)
    return logits_BxV, (tuple(keys), tuple(values))


@functools.partial(
    jax.jit,
    static_argnames=("config", "sampling", "steps", "eos_ids", "block"),
    donate_argnums=(2,),
)
def decode(
    weights,
    header,
    cache,
    rows: Rows,
    *,
    config: ModelConfig,
    sampling: SamplingParams,
    steps: int,
    eos_ids: tuple[int, ...],
    block: int,
):
    """Up to `steps` tokens for every row with some left; ends early when no row has. `block`: the
    cache is read in blocks of so many positions, as far as the longest row reaches, and its keys
    are `turned`; 0: all at once.

    Returns (cache, tokens int32 [steps, B], logprobs float32 [steps, B], count int32 [B] of tokens
    that are valid). A row ends at EOS or when none is left; the K/V of the last token sampled is
    not in the cache yet.
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
        ended_B = functools.reduce(
            jnp.logical_or, [token_B == eos for eos in eos_ids], jnp.zeros(B, bool)
        )
        rows = rows._replace(
            length=rows.length + advance_B,
            token=jnp.where(active_B, token_B, rows.token),
            index=rows.index + advance_B,
            left=jnp.where(ended_B, 0, rows.left - advance_B),
        )
        return i + 1, cache, rows, tokens.at[i].set(token_B), logprobs.at[i].set(logprob_B)

    tokens, logprobs = jnp.zeros((steps, B), jnp.int32), jnp.zeros((steps, B), jnp.float32)
    _, cache, after, tokens, logprobs = jax.lax.while_loop(
        more, step, (0, cache, rows, tokens, logprobs)
    )
    return cache, tokens, logprobs, after.index - rows.index
