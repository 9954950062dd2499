"""The program that reads a packed sequence of several questions (see `packing`) on a CPU, a block
of tokens after the other.

Blocks that the sequence does not fill are not read, and so one program serves sequences, and
prefixes, of any length. Attention passes over the prefix and over those blocks of the sequence that
a block of queries can see, with a running maximum and sum (Dao et al. 2022), in blocks that stay in
the processor's cache. Loops over blocks leave cores idle between products; several sequences are
read at once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cai_jax.core.losses import token_logprobs
from cai_jax.engine import attention
from cai_jax.engine.weights import unembedding
from cai_jax.models import blocks
from cai_jax.models.config import ModelConfig

TOKENS = 512  # of the sequence that go through a layer at a time
QUERIES = 128  # of which attention is computed at a time
KEYS = 128  # which they meet at a time
PREFIX_KEYS = 512  # the same of a prefix, as long as there are so many
TARGETS = 64  # tokens whose probabilities are computed at a time
AT_ONCE = min(os.cpu_count() or 1, 16)  # sequences


class _Reading(NamedTuple):
    """What all layers read: the weights, and of the packed sequence where branches end and the
    positions of tokens; prefix is `cached.KeyValues` [K, P, Dh], or None."""

    weights: dict
    config: ModelConfig
    prefix: tuple | None
    ends_T: jax.Array
    positions_T: jax.Array


class _Visible(NamedTuple):
    """Of each block of queries, the blocks of keys that it can see, first, and how many."""

    keys_BxC: jax.Array
    count_B: jax.Array


@functools.partial(
    jax.jit, static_argnames=("config",), compiler_options={"xla_cpu_multi_thread_eigen": False}
)
def read(
    weights,
    prefix,
    tokens_T,
    ends_T,
    offsets_T,
    indices_N,
    targets_N,
    count,
    num_targets,
    config: ModelConfig,
):
    """Log-probabilities of the targets of a packed sequence, and its keys and values.

    Args:
      weights: as `weights.prepare` gives them.
      prefix: `cached.KeyValues` [K, P, Dh], or None.
      tokens_T, ends_T, offsets_T, indices_N, targets_N: as in `packing.Packed`; T, P and N are
        multiples of the sizes above, or smaller.
      count, num_targets: how many tokens and targets are real.
      config: the model's.

    Returns:
      (log P(targets[n]) after the token at indices[n], float32 [N], keys, values [K, T, Dh] a
      layer).
    """
    positions_T = offsets_T + (0 if prefix is None else prefix.length)
    reading = _Reading(weights, config, prefix, ends_T, positions_T)
    tables = blocks.rope_tables(positions_T[None], config)
    x_1xTxD = blocks.embed(weights["embed"], tokens_T[None], config)
    visible = _visible_blocks(ends_T, min(QUERIES, TOKENS, tokens_T.shape[0]))
    # ---- Layers: keys and values of each are kept for what is read behind this sequence ----------
    kept = []
    for number in range(config.num_layers):
        x_1xTxD, *key_values = _read_layer(reading, number, x_1xTxD, tables, visible, count)
        kept.append(key_values)
    scores_N = _score_targets(reading, x_1xTxD, tables, kept[-1], indices_N, targets_N, num_targets)
    return scores_N, tuple(keys for keys, _ in kept), tuple(values for _, values in kept)


def _read_layer(reading: _Reading, number: int, x_1xTxD, tables, visible: _Visible, count):
    """(the layer's output, keys, values [K, T, Dh]), a block of tokens after the other as far as
    there are any. Of the last layer only keys and values are used, and the compiler leaves out the
    rest."""
    config, T = reading.config, x_1xTxD.shape[1]
    size = min(TOKENS, T)
    queries = min(QUERIES, size)

    def step(i, carry):
        x_1xTxD, *held = carry
        at = i * size

        def block(x):
            return jax.lax.dynamic_slice_in_dim(x, at, size, 1)

        def hold(*new):
            held[:] = [
                jax.lax.dynamic_update_slice(old, added, (0, at, 0))
                for old, added in zip(held, new, strict=True)
            ]
            return held

        seen = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, at // queries, size // queries), visible
        )
        rope, index_S = jax.tree.map(block, tables), at + jnp.arange(size)
        out = _layer(reading, number, block(x_1xTxD), rope, hold, index_S, seen)
        if number < config.num_layers - 1:
            x_1xTxD = jax.lax.dynamic_update_slice(x_1xTxD, out, (0, at, 0))
        return x_1xTxD, *held

    empty = jnp.zeros((config.num_kv_heads, T, config.head_dim), reading.weights["embed"].dtype)
    num_blocks = (count + size - 1) // size
    return jax.lax.fori_loop(0, num_blocks, step, (x_1xTxD, empty, empty))


def _score_targets(
    reading: _Reading, x_1xTxD, tables, key_values, indices_N, targets_N, num_targets
):
    """Log-probabilities [N] of the targets: the last layer, `key_values` of which are known, at the
    tokens before them."""
    weights, config, T = reading.weights, reading.config, x_1xTxD.shape[1]
    chunk, num_keys = min(TARGETS, indices_N.shape[0]), T // min(KEYS, T)
    num_blocks = -(-chunk // min(QUERIES, TOKENS, T))
    everything = _Visible(
        jnp.tile(jnp.arange(num_keys), (num_blocks, 1)), jnp.full(num_blocks, num_keys)
    )

    def score(i, out_N):
        indices, targets = (
            jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (indices_N, targets_N)
        )
        x_1xNxD, rope = jax.tree.map(lambda x: jnp.take(x, indices, axis=1), (x_1xTxD, tables))
        last = config.num_layers - 1
        x_1xNxD = _layer(reading, last, x_1xNxD, rope, lambda *_: key_values, indices, everything)
        hidden = blocks.norm(x_1xNxD, weights, "final_norm", config)
        unembed = unembedding(weights, weights["embed"].dtype)
        logprobs = token_logprobs(hidden, unembed, targets[None], softcap=config.final_softcap)
        return jax.lax.dynamic_update_slice(out_N, logprobs[0], (i * chunk,))

    scores_N = jnp.zeros(indices_N.shape, jnp.float32)
    return jax.lax.fori_loop(0, (num_targets + chunk - 1) // chunk, score, scores_N)


def _layer(
    reading: _Reading, number: int, x_1xSxD, tables, hold: Callable, index_S, visible: _Visible
):
    """The layer's output for the tokens at `index_S`; `hold(keys, values)` gives those of all
    tokens, with the new ones."""
    config = reading.config

    def attend(q, k, v):
        q = attention.split_heads(q, config)[0]
        key_values = hold(k[0].transpose(1, 0, 2), v[0].transpose(1, 0, 2))
        context = _attend(reading, number, q, key_values, index_S, visible)
        return attention.join_heads(context[None], v.dtype)

    _, rope = config.layer_kinds[number]
    return blocks.layer(x_1xSxD, reading.weights["layers"][number], config, tables[rope], attend)


def _visible_blocks(ends_T, queries: int) -> _Visible:
    """Blocks of keys with one that a query of the block can see."""
    T = ends_T.shape[0]
    keys, start_B = min(KEYS, T), queries * jnp.arange(T // queries)[:, None]
    last_end_C = jnp.max(ends_T.reshape(-1, keys), axis=1)
    seen_BxC = (last_end_C > start_B) & (keys * jnp.arange(T // keys) < start_B + queries)
    return _Visible(jnp.argsort(~seen_BxC, axis=1, stable=True), jnp.sum(seen_BxC, axis=1))


def _attend(reading: _Reading, number: int, q_KxGxSxDh, key_values, index_S, visible: _Visible):
    """Context float32 [K, G, S, Dh] of a layer's scaled queries at `index_S` of the sequence, which
    are B blocks (as in `visible`); key_values: of the sequence, [K, T, Dh]."""
    K, G, S, Dh = q_KxGxSxDh.shape
    B = visible.count_B.shape[0]
    queries = S // B
    M = G * queries

    def attend_block(i):
        head, block = i // B, i % B
        at = (head, 0, block * queries, 0)
        q_MxDh = jax.lax.dynamic_slice(q_KxGxSxDh, at, (1, G, queries, Dh)).reshape(M, Dh)
        index_Q = jax.lax.dynamic_slice_in_dim(index_S, block * queries, queries)
        state = (
            jnp.zeros((M, Dh), jnp.float32),
            jnp.full((M, 1), blocks.MASKED),
            jnp.zeros((M, 1), jnp.float32),
        )
        # The prefix first, then the sequence itself: one softmax over both.
        absorb = functools.partial(
            _absorb, q_MxDh=q_MxDh, head=head, cap=reading.config.attention_softcap
        )
        if reading.prefix is not None:
            state = _over_prefix(reading, number, state, index_Q, absorb)
        seen = visible.keys_BxC[block], visible.count_B[block]
        context, _, total = _over_own(reading, number, state, index_Q, key_values, seen, absorb)
        return (context / total).reshape(G, queries, Dh)

    context = jax.lax.map(attend_block, jnp.arange(K * B))
    return context.reshape(K, B, G, queries, Dh).transpose(0, 2, 1, 3, 4).reshape(K, G, S, Dh)


def _over_prefix(reading: _Reading, number: int, state, index_Q, absorb: Callable):
    """The state after the prefix: in large blocks as long as they are full, then in small ones."""
    prefix, (window, _) = reading.prefix, reading.config.layer_kinds[number]
    key_values, length = (prefix.keys[number], prefix.values[number]), prefix.length
    position_Q = reading.positions_T[index_Q]

    def step(i, state, size, full):
        index_C = i * size + jnp.arange(size)
        allowed = None if full else (index_C < length)[None, :]
        if window:
            near = attention.visible(position_Q[None], index_C, window)[0]
            allowed = near & (index_C < length)
        return absorb(state, key_values, i * size, size, allowed)

    large, small = (min(size, key_values[0].shape[1]) for size in (PREFIX_KEYS, KEYS))
    num_full = length // large
    state = jax.lax.fori_loop(0, num_full, functools.partial(step, size=large, full=True), state)
    rest = num_full * (large // small), (length + small - 1) // small
    return jax.lax.fori_loop(*rest, functools.partial(step, size=small, full=False), state)


def _over_own(reading: _Reading, number: int, state, index_Q, key_values, seen, absorb: Callable):
    """The state after those blocks of the sequence itself that the queries can see."""
    (seen_C, count), (window, _) = seen, reading.config.layer_kinds[number]
    size = min(KEYS, reading.ends_T.shape[0])

    def step(i, state):
        start = seen_C[i] * size
        ends_C, position_C = (
            jax.lax.dynamic_slice_in_dim(x, start, size)
            for x in (reading.ends_T, reading.positions_T)
        )
        allowed = (index_Q[:, None] >= start + jnp.arange(size)) & (index_Q[:, None] < ends_C)
        if window:
            allowed &= reading.positions_T[index_Q][:, None] - position_C < window
        return absorb(state, key_values, start, size, allowed)

    return jax.lax.fori_loop(0, count, step, state)


def _absorb(state, key_values, start, size: int, allowed_QxC, *, q_MxDh, head, cap):
    """One step of the running softmax: (context, maximum, total) after `size` more keys [K, …, Dh]
    of a head from `start` on. M queries are G groups of Q; allowed None: all keys are."""
    context, peak, total = state
    shape = (1, size, q_MxDh.shape[1])
    keys, values = (jax.lax.dynamic_slice(x, (head, start, 0), shape)[0] for x in key_values)
    score = jnp.einsum("md,cd->mc", q_MxDh, keys, preferred_element_type=jnp.float32)
    score = blocks.softcap(score, cap)
    if allowed_QxC is not None:
        Q = allowed_QxC.shape[0]
        by_group = score.reshape(-1, Q, size) if Q > 1 else score[None]
        score = jnp.where(allowed_QxC, by_group, blocks.MASKED).reshape(-1, size)
    higher = jnp.maximum(peak, jnp.max(score, axis=-1, keepdims=True))
    # Where all was masked so far, it shrinks to nothing.
    mass, shrink = jnp.exp(score - higher), jnp.exp(peak - higher)
    add = jnp.einsum(
        "mc,cd->md", mass.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    total = total * shrink + jnp.sum(mass, axis=-1, keepdims=True)
    return context * shrink + add, higher, total
