"""The program that reads a row of several questions (see `packing`) on a CPU, a block of tokens
after the other.

Blocks that the row does not fill are not read, and so one program serves rows, and headers, of any
length. Attention passes over the header and over those blocks of the row that a block of queries
can see, with a running maximum and sum (Dao et al. 2022), in pieces that stay in the processor's
cache. Loops over blocks leave cores idle between products; several rows are read at once.
"""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp

from cai_jax.core.losses import token_logprobs
from cai_jax.engine import attention
from cai_jax.engine.weights import unembedding
from cai_jax.models import blocks
from cai_jax.models.config import ModelConfig

TOKENS = 512  # of the row that go through a layer at a time
QUERIES = 128  # of which attention is computed at a time
KEYS = 128  # which they meet at a time
HEADER_KEYS = 512  # the same of a header, as long as there are so many
TARGETS = 64  # tokens whose probabilities are computed at a time
AT_ONCE = min(os.cpu_count() or 1, 16)  # rows


@functools.partial(
    jax.jit, static_argnames=("config",), compiler_options={"xla_cpu_multi_thread_eigen": False}
)
def read(
    weights,
    header,
    tokens_T,
    ends_T,
    offsets_T,
    places_N,
    targets_N,
    count,
    num_targets,
    config: ModelConfig,
):
    """(log P(targets[n]) after the token at places[n], float32 [N], keys, values): tokens, ends,
    offsets, places and targets as in `packing.Row`, of which `count` tokens and `num_targets`
    targets are real; keys and values [K, T, Dh] a layer.

    header: `cached.KeyValues` [K, P, Dh], or None. T, P and N are multiples of the sizes above, or
    smaller.
    """
    T, dtype = tokens_T.shape[0], weights["embed"].dtype
    size, chunk = min(TOKENS, T), min(TARGETS, places_N.shape[0])
    positions_T = offsets_T + (0 if header is None else header.length)
    tables = blocks.rope_tables(positions_T[None], config)
    x_1xTxD = blocks.embed(weights["embed"], tokens_T[None], config)
    queries, seen = min(QUERIES, size), _seen(ends_T, min(QUERIES, size))
    empty = jnp.zeros((config.num_kv_heads, T, config.head_dim), dtype)
    kept = []

    def through(number, x, tables, hold, place_S, seen):
        """The layer's output; `hold(keys, values)` gives all that there are, with the new ones."""
        window, rope = config.layer_kinds[number]
        before = (
            None if header is None else (header.keys[number], header.values[number], header.length)
        )

        def attend(q, k, v):
            q, held = (
                attention.split_heads(q, config)[0],
                hold(k[0].transpose(1, 0, 2), v[0].transpose(1, 0, 2)),
            )
            found = _attend(
                q,
                *held,
                before,
                place_S,
                ends_T,
                positions_T,
                seen,
                window,
                config.attention_softcap,
            )
            return attention.join_heads(found[None], v.dtype)

        return blocks.layer(x, weights["layers"][number], config, tables[rope], attend)

    for number in range(config.num_layers):
        last = number == config.num_layers - 1

        def step(i, carry, number=number, last=last):
            x_1xTxD, *held = carry
            at = i * size

            def cut(x):
                return jax.lax.dynamic_slice_in_dim(x, at, size, 1)

            def hold(*new):
                held[:] = [
                    jax.lax.dynamic_update_slice(old, part, (0, at, 0))
                    for old, part in zip(held, new, strict=True)
                ]
                return held

            here = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, at // queries, size // queries), seen
            )
            out = through(
                number, cut(x_1xTxD), jax.tree.map(cut, tables), hold, at + jnp.arange(size), here
            )
            # Of the last layer only keys and values are used here, and the compiler leaves out the
            # rest.
            return (
                x_1xTxD if last else jax.lax.dynamic_update_slice(x_1xTxD, out, (0, at, 0)),
                *held,
            )

        x_1xTxD, *held = jax.lax.fori_loop(
            0, (count + size - 1) // size, step, (x_1xTxD, empty, empty)
        )
        kept.append(held)

    def score(i, out_N):
        places, targets = (
            jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (places_N, targets_N)
        )
        x_1xNxD, near = jax.tree.map(lambda x: jnp.take(x, places, axis=1), (x_1xTxD, tables))
        x_1xNxD = through(
            config.num_layers - 1,
            x_1xNxD,
            near,
            lambda *_: kept[-1],
            places,
            _all(T, -(-chunk // queries)),
        )
        hidden = blocks.norm(x_1xNxD, weights, "final_norm", config)
        found = token_logprobs(
            hidden, unembedding(weights, dtype), targets[None], softcap=config.final_softcap
        )
        return jax.lax.dynamic_update_slice(out_N, found[0], (i * chunk,))

    scores_N = jnp.zeros(places_N.shape, jnp.float32)
    scores_N = jax.lax.fori_loop(0, (num_targets + chunk - 1) // chunk, score, scores_N)
    return scores_N, tuple(keys for keys, _ in kept), tuple(values for _, values in kept)


def _seen(ends_T, queries: int):
    """Of each block of queries, the blocks of keys with one that a query there can see (int32 [B,
    C], first), and how many."""
    T = ends_T.shape[0]
    keys, start_B = min(KEYS, T), queries * jnp.arange(T // queries)[:, None]
    last_end_C = jnp.max(ends_T.reshape(-1, keys), axis=1)
    seen_BxC = (last_end_C > start_B) & (keys * jnp.arange(T // keys) < start_B + queries)
    return jnp.argsort(~seen_BxC, axis=1, stable=True), jnp.sum(seen_BxC, axis=1)


def _all(T: int, B: int):
    count = T // min(KEYS, T)
    return jnp.tile(jnp.arange(count), (B, 1)), jnp.full(B, count)


def _attend(
    q_KxGxSxDh,
    keys_KxTxDh,
    values_KxTxDh,
    header,
    place_S,
    ends_T,
    positions_T,
    seen,
    window: int,
    cap: float | None,
):
    """Context float32 [K, G, S, Dh] of scaled queries at `place_S` of the row, whose keys are among
    the row's. seen: as in `_seen`, of the B blocks that the queries are."""
    K, G, S, Dh = q_KxGxSxDh.shape
    (seen_BxC, count_B), T = seen, ends_T.shape[0]
    B = count_B.shape[0]
    queries = S // B

    def one(number):
        head, block = number // B, number % B
        q_MxDh = jax.lax.dynamic_slice(
            q_KxGxSxDh, (head, 0, block * queries, 0), (1, G, queries, Dh)
        ).reshape(G * queries, Dh)
        place_Q = jax.lax.dynamic_slice_in_dim(place_S, block * queries, queries)
        position_Q = positions_T[place_Q]

        def absorb(state, keys, values, start, size, allowed_QxC):
            context, peak, total = state
            keys, values = (
                jax.lax.dynamic_slice(x, (head, start, 0), (1, size, Dh))[0] for x in (keys, values)
            )
            score = jnp.einsum("md,cd->mc", q_MxDh, keys, preferred_element_type=jnp.float32)
            score = blocks.softcap(score, cap)
            if allowed_QxC is not None:
                score = jnp.where(allowed_QxC, score.reshape(G, -1, size), blocks.MASKED).reshape(
                    -1, size
                )
            higher = jnp.maximum(peak, jnp.max(score, axis=-1, keepdims=True))
            mass, shrink = (
                jnp.exp(score - higher),
                jnp.exp(peak - higher),
            )  # where all was masked so far, it shrinks to nothing
            add = jnp.einsum(
                "mc,cd->md", mass.astype(values.dtype), values, preferred_element_type=jnp.float32
            )
            return (
                context * shrink + add,
                higher,
                total * shrink + jnp.sum(mass, axis=-1, keepdims=True),
            )

        def absorb_header(i, state, size, full):
            place_C = i * size + jnp.arange(size)
            allowed = None if full else (place_C < header[2])[None, :]
            if window:
                allowed = attention.visible(position_Q[None], place_C, window)[0] & (
                    place_C < header[2]
                )
            return absorb(state, *header[:2], i * size, size, allowed)

        def absorb_own(i, state):
            size = min(KEYS, T)
            start = seen_BxC[block, i] * size
            ends_C, position_C = (
                jax.lax.dynamic_slice_in_dim(x, start, size) for x in (ends_T, positions_T)
            )
            allowed = (place_Q[:, None] >= start + jnp.arange(size)) & (place_Q[:, None] < ends_C)
            if window:
                allowed &= position_Q[:, None] - position_C < window
            return absorb(state, keys_KxTxDh, values_KxTxDh, start, size, allowed)

        M = G * queries
        state = (
            jnp.zeros((M, Dh), jnp.float32),
            jnp.full((M, 1), blocks.MASKED),
            jnp.zeros((M, 1), jnp.float32),
        )
        if header is not None:
            large, small = (min(size, header[0].shape[1]) for size in (HEADER_KEYS, KEYS))
            whole = header[2] // large
            state = jax.lax.fori_loop(
                0, whole, functools.partial(absorb_header, size=large, full=True), state
            )
            rest = whole * (large // small), (header[2] + small - 1) // small
            state = jax.lax.fori_loop(
                *rest, functools.partial(absorb_header, size=small, full=False), state
            )
        context, _, total = jax.lax.fori_loop(0, count_B[block], absorb_own, state)
        return (context / total).reshape(G, queries, Dh)

    found = jax.lax.map(one, jnp.arange(K * B))
    return found.reshape(K, B, G, queries, Dh).transpose(0, 2, 1, 3, 4).reshape(K, G, S, Dh)
