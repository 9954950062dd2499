"""The programs that sampling runs on the device: prefill of a chunk of prompt, decoding of many
tokens, scoring.

Keys and values are, layer by layer, arrays [B, K, S, Dh]; those of a prefix that all sequences
share are [K, P, Dh], without a batch axis. Attention over the spans (prefix, own past, new tokens)
has one common maximum and one common denominator, so it is the softmax over their concatenation.
What a sequence computes depends on the size of its batch but not on its slot there, nor on the
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
from cai_jax.engine.draw import Draws, Top, draw, draw_each, top_logprobs
from cai_jax.engine.weights import unembedding
from cai_jax.models import blocks
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Sampling

CACHE_AXES = ("batch", "kv_heads", None, None)


class KeyValues(NamedTuple):
    """keys, values: one array per layer; length: how many positions count, int32 [] for a prefix
    [K,P,Dh] and int32 [B] for sequences [B,K,S,Dh]."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array | int


class Slots(NamedTuple):
    """The host's side of a batch of sequences, each int32 [B]: `length`, positions in the cache;
    `token`, the one to feed next; `index`, tokens sampled so far; `left`, tokens that may still
    come, 0 where the slot is idle; and `key` uint32 [B, 2]."""

    length: jax.Array
    token: jax.Array
    index: jax.Array
    left: jax.Array
    key: jax.Array


# ---------------------------------------------------------------- prefill and scoring


def _prefix_span(prefix: KeyValues | None, layer: int, positions_BxT, window: int) -> list:
    if prefix is None:
        return []
    keys = prefix.keys[layer]
    index_P = jnp.arange(keys.shape[1])
    allowed = attention.visible(positions_BxT, index_P, window) & (index_P < prefix.length)
    return [(keys, prefix.values[layer], allowed)]


def _forward(weights, prefix, past, tokens_BxT, ends_BxT, positions_BxT, config, kernel):
    """(x_BxTxD after the last layer, keys, values): new tokens after `prefix` and `past`, either of
    which may be None.

    A token sees those before it whose ends come after it (see `packing`), and all of them where
    ends is None.
    """
    tables = blocks.rope_tables(positions_BxT, config)
    x_BxTxD = blocks.embed(weights["embed"], tokens_BxT, config)
    index_T = jnp.arange(tokens_BxT.shape[1])
    # Causal, and within the own branch where the sequence is a tree.
    related = (index_T[:, None] >= index_T[None, :])[None]
    if ends_BxT is not None:
        related = related & (index_T[:, None] < ends_BxT[:, None, :])
    start = 0 if prefix is None else prefix.length
    new_keys, new_values = [], []
    for layer, (layer_weights, (window, rope)) in enumerate(
        zip(weights["layers"], config.layer_kinds, strict=True)
    ):

        def attend(q, k, v, layer=layer, window=window):
            k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
            new_keys.append(k)
            new_values.append(v)
            # Each span has its own mask; their softmax is computed in one.
            spans = _prefix_span(prefix, layer, positions_BxT, window)
            if past is not None:
                index_S = jnp.arange(past.keys[layer].shape[2])
                allowed = attention.visible(positions_BxT - start, index_S, window) & (
                    index_S < past.length[:, None, None]
                )
                spans.append((past.keys[layer], past.values[layer], allowed))
            near = related
            if window:
                near = near & (positions_BxT[:, :, None] - positions_BxT[:, None, :] < window)
            spans.append((k, v, near))
            q, cap = attention.split_heads(q, config), config.attention_softcap
            if kernel in flash.KERNELS:
                return attention.join_heads(flash.attend(q, spans, cap, kernel), v.dtype)
            context, _, total = attention.attend(q, spans, cap, by_head=kernel == "by_head")
            return attention.join_heads(context / total, v.dtype)

        x_BxTxD = blocks.layer(x_BxTxD, layer_weights, config, tables[rope], attend)
    return x_BxTxD, tuple(new_keys), tuple(new_values)


@functools.partial(jax.jit, static_argnames=("config", "kernel"))
def prefill(weights, prefix, past, tokens_BxT, config: ModelConfig, kernel: str = ""):
    """Prefills a chunk of prompt. Padding is at its end: nothing before it sees it, and the caller
    does not count it.

    Args:
      weights: as `weights.prepare` gives them.
      prefix, past: keys and values that the chunk follows, or None.
      tokens_BxT: the chunk.
      config: the model's.
      kernel: one of flash.KERNELS, or "by_head" (see `attention.attend`), or "" for XLA's products
        as they come.

    Returns:
      Keys and values [B, K, T, Dh] per layer.
    """
    T = tokens_BxT.shape[1]
    start = (0 if prefix is None else prefix.length) + (0 if past is None else past.length[:, None])
    positions_BxT = jnp.broadcast_to(start + jnp.arange(T), tokens_BxT.shape)
    _, keys, values = _forward(
        weights, prefix, past, tokens_BxT, None, positions_BxT, config, kernel
    )
    return keys, values


@functools.partial(jax.jit, static_argnames=("config", "kernel", "top"))
def score(
    weights,
    prefix,
    past,
    tokens_BxT,
    ends_BxT,
    offsets_BxT,
    indices_BxN,
    targets_BxN,
    config: ModelConfig,
    kernel: str = "",
    top: int = 0,
):
    """Scores the targets of packed sequences.

    Args:
      weights, prefix, past, config, kernel: as in `prefill`.
      tokens_BxT, ends_BxT, offsets_BxT, indices_BxN, targets_BxN: as in `packing.Packed`.
      top: how many of the most probable tokens are wanted, too.

    Returns:
      (log P(targets[b, n]) after the token at indices[b, n], float32 [B, N]; `Top` of those
      positions or None).
    """
    start = (0 if prefix is None else prefix.length) + (0 if past is None else past.length[:, None])
    x_BxTxD, _, _ = _forward(
        weights, prefix, past, tokens_BxT, ends_BxT, start + offsets_BxT, config, kernel
    )
    # Logits of the few tokens only that precede a target.
    x_BxNxD = jnp.take_along_axis(x_BxTxD, indices_BxN[..., None], axis=1)
    hidden = blocks.norm(x_BxNxD, weights, "final_norm", config)
    table_VxD, cap = unembedding(weights, hidden.dtype), config.final_softcap
    logprobs_BxN = token_logprobs(hidden, table_VxD, targets_BxN, softcap=cap)
    if not top:
        return logprobs_BxN, None

    def of_position(hidden_BxD):
        logits_BxV = jnp.einsum(
            "bd,vd->bv", hidden_BxD, table_VxD, preferred_element_type=jnp.float32
        )
        return top_logprobs(blocks.softcap(logits_BxV, cap), top)

    # The logits of a few positions at a time: those of all would take more memory than the weights.
    tops = jax.lax.map(of_position, hidden.swapaxes(0, 1), batch_size=32)
    return logprobs_BxN, jax.tree.map(lambda x: x.swapaxes(0, 1), tops)


# ---------------------------------------------------------------- the cache


def empty_cache(
    config: ModelConfig, batch: int, size: int, dtype, transposed: bool = False
) -> tuple[tuple, tuple]:
    """A cache of zeros.

    Args:
      config: the model's.
      batch, size: B slots of S positions.
      dtype: of keys and values.
      transposed: the keys are [B, K, Dh, S], as reading in blocks wants them.

    Returns:
      (keys, values), [B, K, S, Dh] per layer.
    """
    shape = (batch, config.num_kv_heads, size, config.head_dim)

    def zeros(shape):
        return tuple(
            constrain(jnp.zeros(shape, dtype), CACHE_AXES) for _ in range(config.num_layers)
        )

    return zeros((*shape[:2], *shape[:1:-1]) if transposed else shape), zeros(shape)


empty_cache = jax.jit(empty_cache, static_argnums=(0, 1, 2, 3, 4))


@functools.partial(jax.jit, static_argnames=("transposed",), donate_argnums=(0,))
def insert(cache, chunk, slot, start, transposed: bool = False):
    """Writes the keys and values of a chunk into the cache.

    Args:
      cache: (keys, values), given away.
      chunk: keys and values [1, K, T, Dh].
      slot, start: where they go.
      transposed: whether the cache's keys are.

    Returns:
      The cache.
    """

    def write(old, new, at):
        return constrain(jax.lax.dynamic_update_slice(old, new, at), CACHE_AXES)

    keys, values = chunk
    if transposed:
        keys = tuple(
            write(old, new.swapaxes(2, 3), (slot, 0, 0, start))
            for old, new in zip(cache[0], keys, strict=True)
        )
    else:
        keys = tuple(
            write(old, new, (slot, 0, start, 0)) for old, new in zip(cache[0], keys, strict=True)
        )
    return keys, tuple(
        write(old, new, (slot, 0, start, 0)) for old, new in zip(cache[1], values, strict=True)
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def resize(cache, size: int, transposed: bool = False):
    """The cache with S = size: cut, or padded with zeros; `transposed`: its keys are."""

    def change(x, axis):
        x = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, size - x.shape[axis])
        return constrain(jnp.pad(x, padding), CACHE_AXES)

    keys, values = cache
    return (
        tuple(change(x, 3 if transposed else 2) for x in keys),
        tuple(change(x, 2) for x in values),
    )


# ---------------------------------------------------------------- decode


def _write(cache, new_BxKxDh, length_B, transposed: bool = False):
    """Each sequence's new entry at the end of what its cache holds, [B,K,S,Dh] or `transposed`
    [B,K,Dh,S], in the same memory."""
    axis = 2 if transposed else 1
    update = jax.vmap(
        lambda old, new, length: jax.lax.dynamic_update_slice_in_dim(
            old, jnp.expand_dims(new, axis), length, axis
        )
    )
    return update(cache, new_BxKxDh, length_B)


def _step(weights, prefix, cache, length_B, token_B, config, block):
    """Feeds a token per sequence: (logits float32 [B, V] for the next, cache with the token's keys
    and values)."""
    start = 0 if prefix is None else prefix.length
    positions_Bx1 = (start + length_B)[:, None]
    tables, cap = blocks.rope_tables(positions_Bx1, config), config.attention_softcap
    x_Bx1xD = blocks.embed(weights["embed"], token_B[:, None], config)
    keys, values = list(cache[0]), list(cache[1])
    for layer, (layer_weights, (window, rope)) in enumerate(
        zip(weights["layers"], config.layer_kinds, strict=True)
    ):

        def attend(q, k, v, layer=layer, window=window):
            keys[layer] = _write(keys[layer], k[:, 0], length_B, transposed=block > 0)
            values[layer] = _write(values[layer], v[:, 0], length_B)
            q = attention.split_heads(q, config)
            spans = _prefix_span(prefix, layer, positions_Bx1, window)
            # All of the cache at once: what GPUs and TPUs do best.
            if block == 0:
                allowed = attention.visible(
                    length_B[:, None], jnp.arange(keys[layer].shape[2]), window
                )
                context, _, total = attention.attend(
                    q, [*spans, (keys[layer], values[layer], allowed)], cap
                )
                return attention.join_heads(context / total, v.dtype)
            # On a CPU in blocks, as far as the longest sequence reaches.
            q = q[:, :, :, 0]
            if spans:
                state = tuple(x[:, :, :, 0] for x in attention.attend(q[:, :, :, None], spans, cap))
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


def _advanced(slots: Slots, token_B, eos_ids: tuple[int, ...]) -> Slots:
    """The slots after a token; idle ones compute along and change nothing."""
    active_B = slots.left > 0
    advance_B = active_B.astype(jnp.int32)
    ended_B = functools.reduce(
        jnp.logical_or, [token_B == eos for eos in eos_ids], jnp.zeros(token_B.shape, bool)
    )
    return slots._replace(
        length=slots.length + advance_B,
        token=jnp.where(active_B, token_B, slots.token),
        index=slots.index + advance_B,
        left=jnp.where(ended_B, 0, slots.left - advance_B),
    )


@functools.partial(
    jax.jit,
    static_argnames=("config", "sampling", "steps", "eos_ids", "block", "top"),
    donate_argnums=(2,),
)
def decode(
    weights,
    prefix,
    cache,
    slots: Slots,
    draws: Draws | None = None,
    *,
    config: ModelConfig,
    sampling: Sampling | None,
    steps: int,
    eos_ids: tuple[int, ...],
    block: int,
    top: int = 0,
):
    """Up to `steps` tokens for every sequence with some left; ends early when none has.

    Args:
      weights: as `weights.prepare` gives them.
      prefix: keys and values that all sequences share, or None.
      cache: (keys, values), given away.
      slots, draws: where each sequence is; how it draws, where `sampling` is None.
      config, sampling: the model's; how tokens are drawn.
      steps: at most so many tokens a sequence.
      eos_ids: tokens that end a sequence.
      block: the cache is read in blocks of so many positions, as far as the longest sequence
        reaches, and its keys are `transposed`; 0: all at once.
      top: how many of the most probable tokens are wanted at each step.

    Returns:
      (cache, tokens int32 [steps, B], logprobs float32 [steps, B], count int32 [B] of tokens that
      are valid, `Top` of each step or None). A sequence ends at EOS or when none is left; the K/V
      of the last token sampled is not in the cache yet.
    """
    B = slots.token.shape[0]

    def more(carry):
        return (carry[0] < steps) & jnp.any(carry[2].left > 0)

    def step(carry):
        i, cache, slots, tokens, logprobs, tops = carry
        logits_BxV, cache = _step(weights, prefix, cache, slots.length, slots.token, config, block)
        if sampling is None:
            token_B, logprob_B = draw_each(logits_BxV, slots.key, slots.index, draws)
        else:
            token_B, logprob_B = draw(logits_BxV, slots.key, slots.index, sampling)
        if top:
            tops = jax.tree.map(
                lambda x, new: x.at[i].set(new), tops, top_logprobs(logits_BxV, top)
            )
        slots = _advanced(slots, token_B, eos_ids)
        sampled = tokens.at[i].set(token_B), logprobs.at[i].set(logprob_B)
        return i + 1, cache, slots, *sampled, tops

    tokens, logprobs = jnp.zeros((steps, B), jnp.int32), jnp.zeros((steps, B), jnp.float32)
    shape = (steps, B, top)
    tops = Top(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)) if top else None
    _, cache, after, tokens, logprobs, tops = jax.lax.while_loop(
        more, step, (0, cache, slots, tokens, logprobs, tops)
    )
    return cache, tokens, logprobs, after.index - slots.index, tops
