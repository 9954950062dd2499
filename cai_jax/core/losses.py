"""Token log-probabilities, and the two supervised losses: response tokens (SL-CAI) and soft-target
pairs (PM).

All functions are pure. Losses come as (sum, count), so that microbatches, hosts and epochs can be
added exactly and be divided once. Shapes: B batch, T tokens, D width, V vocabulary, C chunk.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

from cai_jax.core import sharding

VOCABULARY_BLOCK = 4096  # logits of how many tokens the backward pass makes at one time, at most


def _chunk_logprobs(hidden_BxCxD, unembed_VxD, targets_BxC, temperature, softcap, entropy: bool):
    """(log-probabilities of the targets, entropies or zeros, log-sum-exps), float32 [B, C]."""
    logits_BxCxV = jnp.einsum(
        "bcd,vd->bcv", hidden_BxCxD, unembed_VxD, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        logits_BxCxV = softcap * jnp.tanh(logits_BxCxV / softcap)
    logits_BxCxV = logits_BxCxV / temperature
    lse_BxC = jax.nn.logsumexp(logits_BxCxV, axis=-1)
    if sharding.single_device():
        target_BxC = jnp.take_along_axis(logits_BxCxV, targets_BxC[..., None], axis=-1)[..., 0]
    else:
        # A masked sum and not a gather: it stays local where the vocabulary is sharded, and its
        # gradient needs no scatter.
        vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits_BxCxV.shape, 2)
        target_BxC = jnp.sum(
            jnp.where(vocabulary == targets_BxC[..., None], logits_BxCxV, 0.0), axis=-1
        )
    if not entropy:
        return target_BxC - lse_BxC, jnp.zeros_like(lse_BxC), lse_BxC
    logp_BxCxV = logits_BxCxV - lse_BxC[..., None]
    return target_BxC - lse_BxC, -jnp.sum(jnp.exp(logp_BxCxV) * logp_BxCxV, axis=-1), lse_BxC


def _by_chunks(
    hidden_BxTxD, unembed_VxD, targets_BxT, temperature, softcap, chunk: int, entropy: bool
):
    """What `_chunk_logprobs` gives, [B, T], with the logits of `chunk` positions of the sequence at
    a time."""
    B, T = targets_BxT.shape
    chunk = min(chunk, T) or T
    padded = -(-T // chunk) * chunk
    hidden_BxTxD = jnp.pad(hidden_BxTxD, ((0, 0), (0, padded - T), (0, 0)))
    targets_BxT = jnp.pad(targets_BxT, ((0, 0), (0, padded - T)))

    def step(hidden_BxCxD, targets_BxC):
        return _chunk_logprobs(
            hidden_BxCxD, unembed_VxD, targets_BxC, temperature, softcap, entropy
        )

    if padded == chunk:
        results = step(hidden_BxTxD, targets_BxT)
    else:
        N = padded // chunk
        hidden_NxBxCxD = jnp.moveaxis(hidden_BxTxD.reshape(B, N, chunk, -1), 1, 0)
        targets_NxBxC = jnp.moveaxis(targets_BxT.reshape(B, N, chunk), 1, 0)
        results = jax.lax.map(
            lambda args: jax.checkpoint(step)(*args), (hidden_NxBxCxD, targets_NxBxC)
        )
        results = (jnp.moveaxis(x, 0, 1).reshape(B, padded) for x in results)
    return tuple(x[:, :T] for x in results)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _by_blocks(
    hidden_BxTxD, unembed_VxD, targets_BxT, temperature, softcap, chunk: int, entropy: bool
):
    """`_by_chunks` with a backward pass in which the logits of some tokens at a time exist, for all
    positions: the gradient of each row of the unembedding is there at once, and never added up from
    several as large. No gradient flows into entropies and log-sum-exps."""
    return _by_chunks(hidden_BxTxD, unembed_VxD, targets_BxT, temperature, softcap, chunk, entropy)


def _blocks_forward(hidden_BxTxD, unembed_VxD, targets_BxT, *options):
    results = _by_chunks(hidden_BxTxD, unembed_VxD, targets_BxT, *options)
    return results, (hidden_BxTxD, unembed_VxD, targets_BxT, results[2])


def _blocks_backward(temperature, softcap, chunk, entropy, kept, grads):
    hidden_BxTxD, unembed_VxD, targets_BxT, lse_BxT = kept
    (V, D), (B, T) = unembed_VxD.shape, targets_BxT.shape
    hidden_PxD, targets_P, lse_P, grad_P = (
        x.reshape(B * T, *x.shape[2:]) for x in (hidden_BxTxD, targets_BxT, lse_BxT, grads[0])
    )

    # Tokens are the columns: what is transposed for the products are weights, which are fewer than
    # logits.
    def block(grad_hidden_DxP, weights):
        unembed_NxD, first = weights
        capped_NxP = jnp.einsum(
            "nd,pd->np", unembed_NxD, hidden_PxD, preferred_element_type=jnp.float32
        )
        if softcap is not None:
            capped_NxP = softcap * jnp.tanh(capped_NxP / softcap)
        chosen_NxP = first + jnp.arange(len(unembed_NxD))[:, None] == targets_P
        slopes_NxP = (chosen_NxP - jnp.exp(capped_NxP / temperature - lse_P)) * (
            grad_P / temperature
        )
        if softcap is not None:
            slopes_NxP = slopes_NxP * (1.0 - (capped_NxP / softcap) ** 2)
        grad_unembed_NxD = jnp.einsum("np,pd->nd", slopes_NxP, hidden_PxD)
        return grad_hidden_DxP + jnp.einsum(
            "nd,np->dp", unembed_NxD, slopes_NxP
        ), grad_unembed_NxD.astype(unembed_VxD.dtype)

    # No more logits at a time than the forward pass has, in blocks of one size if there is one.
    most = min(VOCABULARY_BLOCK, max(V * (min(chunk, T) or T) // T, 1))
    least = -(-V // most)
    count = next((count for count in range(least, 2 * least) if V % count == 0), least)
    size = V // count
    blocks_CxNxD, firsts_C = (
        unembed_VxD[: count * size].reshape(count, size, D),
        jnp.arange(count) * size,
    )
    grad_hidden_DxP = jnp.zeros((D, B * T), jnp.float32)
    grad_hidden_DxP, grad_CxNxD = jax.lax.scan(block, grad_hidden_DxP, (blocks_CxNxD, firsts_C))
    grad_VxD = grad_CxNxD.reshape(count * size, D)
    if count * size < V:
        grad_hidden_DxP, rest = block(grad_hidden_DxP, (unembed_VxD[count * size :], count * size))
        grad_VxD = jnp.concatenate([grad_VxD, rest])
    return grad_hidden_DxP.T.reshape(B, T, D).astype(hidden_BxTxD.dtype), grad_VxD, None


_by_blocks.defvjp(_blocks_forward, _blocks_backward)


def token_logprobs(
    hidden_BxTxD,
    unembed_VxD,
    targets_BxT,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk: int = 128,
    entropy: bool = False,
):
    """log P(targets[b, t] | hidden[b, t]) in nats. Every use of log-probabilities in the project
    (SL, policy, reference, judge, evaluation) goes through here.

    Args:
      hidden_BxTxD, unembed_VxD: whose products are logits; the log-sum-exp is float32 whatever
        their dtype.
      targets_BxT: aligned with the hidden states by the caller.
      temperature: > 0; divides the logits.
      softcap: where given, logits are cap·tanh(x/cap) before that.
      chunk: positions of the sequence whose logits exist at a time, in the backward pass too (they
        are recomputed there; on one device those of as few tokens of the vocabulary); 0: all.
      entropy: also return the entropy of each distribution in nats, into which no gradient flows.
    Returns:
      float32 [B, T], or (that, entropies float32 [B, T]).
    """
    chex.assert_rank([hidden_BxTxD, unembed_VxD, targets_BxT], [3, 2, 2])
    chex.assert_type([hidden_BxTxD, unembed_VxD, targets_BxT], [float, float, int])
    find = _by_blocks if sharding.single_device() else _by_chunks
    logprobs_BxT, entropy_BxT, _ = find(
        hidden_BxTxD, unembed_VxD, targets_BxT, temperature, softcap, chunk, entropy
    )
    return (logprobs_BxT, jax.lax.stop_gradient(entropy_BxT)) if entropy else logprobs_BxT


def next_token_logprobs(hidden_BxTxD, unembed_VxD, tokens_BxT, positions_BxN=None, **options):
    """log P(tokens[b, t] | tokens[b, :t]) at position t; 0 at position 0, which nothing predicts.

    Args:
      hidden_BxTxD, unembed_VxD, tokens_BxT: of the sequences; hidden[b, t] has read token t.
      positions_BxN: those that are wanted, int32, each once, with zeros to fill up; all others are
        0, and for them no logits are made, which in a small model are a fifth of the work.
      **options: those of `token_logprobs`; with entropy=True the entropy at t is that of the
        distribution which token t was drawn from.
    Returns:
      float32 [B, T], or (that, entropies).
    """
    if positions_BxN is None:
        out = token_logprobs(hidden_BxTxD[:, :-1], unembed_VxD, tokens_BxT[:, 1:], **options)
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (1, 0))), out)
    take = jax.vmap(lambda sequence, positions: sequence[positions])
    results = token_logprobs(
        take(hidden_BxTxD, jnp.maximum(positions_BxN - 1, 0)),
        unembed_VxD,
        take(tokens_BxT, positions_BxN),
        **options,
    )
    empty_T = jnp.zeros(tokens_BxT.shape[1], jnp.float32)
    # Each position once, so nothing is added but zeros.
    put = jax.vmap(lambda positions, values: empty_T.at[positions].add(values))
    wanted_BxN = positions_BxN > 0
    return jax.tree.map(
        lambda x_BxN: put(positions_BxN, jnp.where(wanted_BxN, x_BxN, 0.0)), results
    )


def masked_sum(values, mask):
    """(sum, count) of the values where mask is True. What is masked cannot leak, NaN included."""
    chex.assert_equal_shape([values, mask])
    chex.assert_type([values, mask], [float, bool])
    return jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32), jnp.sum(
        mask, dtype=jnp.float32
    )


def sequence_sum(values_BxT, segments_BxT):
    """At every token the sum over its sequence, [B, T]; a row holds the sequences that `segments`
    numbers, each without a gap."""
    # Numbered by row: those of the batch may be larger than the row is long.
    starts_BxT = jnp.diff(segments_BxT, axis=1, prepend=segments_BxT[:, :1]) != 0
    ids_BxT = jnp.cumsum(starts_BxT, axis=1)

    def by_sequence(values_T, ids_T):
        return jax.ops.segment_sum(values_T, ids_T, len(ids_T))[ids_T]

    return jax.vmap(by_sequence)(values_BxT, ids_BxT)


def response_loss(logprobs_BxT, target_mask_BxT):
    """Supervised loss of section 3.1 on the response tokens only: (−Σ log p, number of tokens). One
    token, one vote."""
    total, count = masked_sum(logprobs_BxT, target_mask_BxT)
    return -total, count


def preference_loss(scores_a_B, scores_b_B, prob_a_B, mask_B):
    """−p·log σ(Δ) − (1 − p)·log σ(−Δ), Δ = r_A − r_B.

    Its optimum is Δ* = logit p (section 4.1 of the paper with soft labels; p = 1 is the pairwise
    loss of 2204.05862).

    Args:
      scores_a_B, scores_b_B: r_A and r_B.
      prob_a_B: the target p = P(A better).
      mask_B: which of them count.
    Returns:
      (sum, count), in nats.
    """
    chex.assert_rank([scores_a_B, scores_b_B, prob_a_B, mask_B], 1)
    chex.assert_type([scores_a_B, scores_b_B, prob_a_B], float)
    delta = (scores_a_B - scores_b_B).astype(jnp.float32)
    losses = -prob_a_B * jax.nn.log_sigmoid(delta) - (1.0 - prob_a_B) * jax.nn.log_sigmoid(-delta)
    return masked_sum(losses, mask_B)
