"""One token from the logits of each row. Pure; what a row draws depends on its own logits, key and
token index only."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from cai_jax.structs import Sampling

BLOCK = 128  # the vocabulary is summed in blocks of this many tokens


class Draws(NamedTuple):
    """How each sequence of a batch draws: temperature and top_p float32 [B], top_k int32 [B]."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


class Top(NamedTuple):
    """The most probable tokens first, at temperature 1: ids int32, logprobs float32, [..., top]."""

    ids: jax.Array
    logprobs: jax.Array


def draw(logits_BxV: jax.Array, key_Bx2: jax.Array, index_B: jax.Array, sampling: Sampling):
    """Draws a token for each sequence. Top-k and top-p keep what ties with the last token kept.

    Args:
      logits_BxV: float, at temperature 1.
      key_Bx2: uint32, names the sequence.
      index_B: int32, counts its tokens so far.
      sampling: temperature, top-k and top-p.

    Returns:
      (token int32 [B], logprob float32 [B]); the log-probability is that of the temperature-scaled
      distribution before top-k and top-p (at temperature 1 where sampling is greedy).
    """
    chex.assert_rank([logits_BxV, key_Bx2, index_B], [2, 2, 1])
    chex.assert_type(logits_BxV, float)
    x_BxV = logits_BxV.astype(jnp.float32)
    if sampling.temperature > 0:
        x_BxV = x_BxV / sampling.temperature
    best_B = jnp.argmax(x_BxV, axis=-1).astype(jnp.int32)
    mass_BxNxC, lse_B = _masses(x_BxV)
    if sampling.temperature == 0:
        token_B = best_B
    else:
        if sampling.top_k or sampling.top_p < 1:
            mass_BxV = _keep(mass_BxNxC.reshape(len(x_BxV), -1), sampling.top_k, sampling.top_p)
            mass_BxNxC = mass_BxV.reshape(mass_BxNxC.shape)
        token_B = _choose(mass_BxNxC, best_B, key_Bx2, index_B)
    logprob_B = jnp.take_along_axis(x_BxV, token_B[:, None], axis=1)[:, 0] - lse_B
    return token_B, logprob_B


def draw_each(logits_BxV: jax.Array, key_Bx2: jax.Array, index_B: jax.Array, draws: Draws):
    """As `draw`, each sequence in a way of its own.

    Args:
      logits_BxV, key_Bx2, index_B: as in `draw`.
      draws: temperature 0 is greedy; top_k 0 and top_p 1 are off.

    Returns:
      (token int32 [B], logprob float32 [B]); the log-probability is that at temperature 1.
    """
    chex.assert_rank([logits_BxV, key_Bx2, index_B], [2, 2, 1])
    chex.assert_type(logits_BxV, float)
    x_BxV = logits_BxV.astype(jnp.float32)
    V, greedy_B = x_BxV.shape[1], draws.temperature == 0
    best_B = jnp.argmax(x_BxV, axis=-1).astype(jnp.int32)
    mass_BxNxC, _ = _masses(x_BxV / jnp.where(greedy_B, 1.0, draws.temperature)[:, None])
    # All of the vocabulary is kept where that is asked, so one program serves all sequences.
    top_k_B = jnp.where((draws.top_k == 0) | (draws.top_k > V), V, draws.top_k)
    mass_BxNxC = jax.lax.cond(
        jnp.any((top_k_B < V) | (draws.top_p < 1)),
        lambda mass: _keep_each(mass.reshape(len(mass), -1), top_k_B, draws.top_p).reshape(
            mass.shape
        ),
        lambda mass: mass,
        mass_BxNxC,
    )
    token_B = jnp.where(greedy_B, best_B, _choose(mass_BxNxC, best_B, key_Bx2, index_B))
    logprob_B = jnp.take_along_axis(x_BxV, token_B[:, None], axis=1)[:, 0]
    return token_B, logprob_B - jax.nn.logsumexp(x_BxV, axis=-1)


def top_logprobs(logits_BxV: jax.Array, top: int) -> Top:
    """The `top` most probable tokens of each sequence."""
    values, ids = jax.lax.top_k(logits_BxV, top)
    return Top(ids, values - jax.nn.logsumexp(logits_BxV, axis=-1, keepdims=True))


def _masses(x_BxV):
    """(mass relative to the most probable token, in blocks [B, N, BLOCK]; log-sum-exp [B])."""
    # Inverse distribution function in two levels, a block and a token in it: one exponential per
    # token and two random numbers per sequence, where Gumbel noise needs a random number and two
    # logarithms per token.
    x_BxNxC = jnp.pad(
        x_BxV, ((0, 0), (0, -x_BxV.shape[1] % BLOCK)), constant_values=-jnp.inf
    ).reshape(len(x_BxV), -1, BLOCK)
    peak_B = jnp.max(x_BxV, axis=-1)
    mass_BxNxC = jnp.exp(x_BxNxC - peak_B[:, None, None])
    return mass_BxNxC, peak_B + jnp.log(jnp.sum(jnp.sum(mass_BxNxC, axis=-1), axis=-1))


def _choose(mass_BxNxC, best_B, key_Bx2, index_B):
    """A token of each sequence, as probable as its mass."""
    uniform_Bx2 = jax.vmap(_uniform)(key_Bx2, index_B)
    block_B = _pick(jnp.sum(mass_BxNxC, axis=-1), uniform_Bx2[:, 0])
    inside_BxC = jnp.take_along_axis(mass_BxNxC, block_B[:, None, None], axis=1)[:, 0]
    token_B = block_B * BLOCK + _pick(inside_BxC, uniform_Bx2[:, 1])
    # A sum that rounds up past the last positive mass must not select what has none.
    mass_BxV = mass_BxNxC.reshape(len(mass_BxNxC), -1)
    chosen_B = jnp.take_along_axis(mass_BxV, token_B[:, None], axis=1)[:, 0]
    return jnp.where(chosen_B > 0, token_B, best_B).astype(jnp.int32)


def _uniform(key_2, index):
    """Two numbers in [0, 1) for token `index` of the sequence called `key_2`."""
    return jax.random.uniform(
        jax.random.fold_in(jax.random.wrap_key_data(key_2, impl="threefry2x32"), index), (2,)
    )


def _pick(mass_BxN, uniform_B):
    """Index of the first running sum above uniform · total."""
    running_BxN = jnp.cumsum(mass_BxN, axis=-1)
    index_B = jnp.sum(
        running_BxN <= uniform_B[:, None] * running_BxN[:, -1:], axis=-1, dtype=jnp.int32
    )
    return jnp.minimum(index_B, mass_BxN.shape[1] - 1)


def _keep(mass_BxV, top_k: int, top_p: float):
    """Zeroes what is outside the k most probable tokens, and outside the smallest set of most
    probable tokens that holds `top_p` of what top-k left."""
    if top_k and top_k < mass_BxV.shape[1]:
        mass_BxV = _only_top_k(mass_BxV, top_k)
    return _only_top_p(mass_BxV, top_p) if top_p < 1 else mass_BxV


def _keep_each(mass_BxV, top_k_B, top_p_B):
    """The same for each sequence."""
    mass_BxV = _only_top_k(mass_BxV, top_k_B)
    return jnp.where(top_p_B[:, None] < 1, _only_top_p(mass_BxV, top_p_B), mass_BxV)


def _only_top_k(mass_BxV, top_k):
    limit = _threshold(mass_BxV, lambda kept: jnp.sum(kept, axis=-1) >= top_k)
    return jnp.where(mass_BxV >= limit, mass_BxV, 0.0)


def _only_top_p(mass_BxV, top_p):
    wanted_B = top_p * jnp.sum(mass_BxV, axis=-1)
    limit = _threshold(
        mass_BxV, lambda kept: jnp.sum(jnp.where(kept, mass_BxV, 0.0), axis=-1) >= wanted_B
    )
    return jnp.where(mass_BxV >= limit, mass_BxV, 0.0)


def _threshold(mass_BxV, enough):
    """The largest value t of each sequence, [B, 1], such that the tokens of mass ≥ t are enough.

    By bisection over the bit patterns of the non-negative floats, which are ordered as the floats
    are: 31 passes instead of a sort of the vocabulary.
    """

    def halve(_, bounds):
        low_B, high_B = bounds  # enough at low, not at high
        middle_B = low_B + (high_B - low_B) // 2
        value_B = jax.lax.bitcast_convert_type(middle_B, jnp.float32)
        good_B = enough(mass_BxV >= value_B[:, None])
        return jnp.where(good_B, middle_B, low_B), jnp.where(good_B, high_B, middle_B)

    # The largest mass is exp(0) = 1.
    top = jax.lax.bitcast_convert_type(jnp.float32(2.0), jnp.int32)
    low_B = jnp.zeros(len(mass_BxV), jnp.int32)
    low_B, _ = jax.lax.fori_loop(0, 31, halve, (low_B, jnp.full_like(low_B, top)))
    return jax.lax.bitcast_convert_type(low_B, jnp.float32)[:, None]
