"""Token log-probabilities, and the two supervised losses: response tokens (SL-CAI) and soft-target pairs (PM).

All functions are pure. Losses come as (sum, count), so that microbatches, hosts and epochs can be added exactly and be
divided once. Shapes: B batch, T tokens, D width, V vocabulary, C chunk.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def _chunk_logprobs(hidden_BxCxD, unembed_VxD, targets_BxC, temperature, softcap, entropy: bool):
    logits_BxCxV = jnp.einsum("bcd,vd->bcv", hidden_BxCxD, unembed_VxD, preferred_element_type=jnp.float32)
    if softcap is not None:
        logits_BxCxV = softcap * jnp.tanh(logits_BxCxV / softcap)
    logits_BxCxV = logits_BxCxV / temperature
    lse_BxC = jax.nn.logsumexp(logits_BxCxV, axis=-1)
    # A masked sum and not a gather: it stays local where the vocabulary is sharded, and its gradient needs no scatter.
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits_BxCxV.shape, 2)
    target_BxC = jnp.sum(jnp.where(vocabulary == targets_BxC[..., None], logits_BxCxV, 0.0), axis=-1)
    if not entropy:
        return target_BxC - lse_BxC, jnp.zeros_like(lse_BxC)
    logp_BxCxV = logits_BxCxV - lse_BxC[..., None]
    return target_BxC - lse_BxC, -jnp.sum(jnp.exp(logp_BxCxV) * logp_BxCxV, axis=-1)


def token_logprobs(hidden_BxTxD, unembed_VxD, targets_BxT, *, temperature=1.0, softcap: float | None = None,
                   chunk: int = 128, entropy: bool = False):
    """log P(targets[b, t] | hidden[b, t]) in float32 [B, T], nats; the caller has aligned targets with hidden states.

    The logits exist for `chunk` positions of the sequence at a time, in the backward pass too (they are made again
    there); chunk 0 means all at once. The log-sum-exp is float32 whatever the weights' dtype. Logits are soft-capped
    (cap·tanh(x/cap)) where `softcap` is given, then divided by `temperature` (> 0). Every use of log-probabilities in
    the project (SL, policy, reference, judge, evaluation) goes through here.
    With entropy=True also returns the entropy of each distribution in nats, float32 [B, T].
    """
    chex.assert_rank([hidden_BxTxD, unembed_VxD, targets_BxT], [3, 2, 2])
    chex.assert_type([hidden_BxTxD, unembed_VxD, targets_BxT], [float, float, int])
    B, T = targets_BxT.shape
    chunk = min(chunk, T) or T
    padded = -(-T // chunk) * chunk
    hidden_BxTxD = jnp.pad(hidden_BxTxD, ((0, 0), (0, padded - T), (0, 0)))
    targets_BxT = jnp.pad(targets_BxT, ((0, 0), (0, padded - T)))

    def step(hidden_BxCxD, targets_BxC):
        return _chunk_logprobs(hidden_BxCxD, unembed_VxD, targets_BxC, temperature, softcap, entropy)

    if padded == chunk:
        logprobs_BxT, entropy_BxT = step(hidden_BxTxD, targets_BxT)
    else:
        N = padded // chunk
        hidden_NxBxCxD = jnp.moveaxis(hidden_BxTxD.reshape(B, N, chunk, -1), 1, 0)
        targets_NxBxC = jnp.moveaxis(targets_BxT.reshape(B, N, chunk), 1, 0)
        pair = jax.lax.map(lambda args: jax.checkpoint(step)(*args), (hidden_NxBxCxD, targets_NxBxC))
        logprobs_BxT, entropy_BxT = (jnp.moveaxis(x, 0, 1).reshape(B, padded) for x in pair)
    return (logprobs_BxT[:, :T], entropy_BxT[:, :T]) if entropy else logprobs_BxT[:, :T]


def next_token_logprobs(hidden_BxTxD, unembed_VxD, tokens_BxT, **options):
    """log P(tokens[b, t] | tokens[b, :t]) at position t, float32 [B, T]; position 0, which nothing predicts, is 0.

    `options` are those of `token_logprobs`; with entropy=True the entropy at t is that of the distribution which
    token t was drawn from.
    """
    out = token_logprobs(hidden_BxTxD[:, :-1], unembed_VxD, tokens_BxT[:, 1:], **options)
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (1, 0))), out)


def masked_sum(values, mask):
    """(sum, count) of the values where mask is True. What is masked cannot leak, NaN included."""
    chex.assert_equal_shape([values, mask])
    chex.assert_type([values, mask], [float, bool])
    return jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32), jnp.sum(mask, dtype=jnp.float32)


def response_loss(logprobs_BxT, target_mask_BxT):
    """Supervised loss of section 3.1 on the response tokens only: (−Σ log p, number of tokens). One token, one vote."""
    total, count = masked_sum(logprobs_BxT, target_mask_BxT)
    return -total, count


def preference_loss(scores_a_B, scores_b_B, prob_a_B, mask_B):
    """−p·log σ(Δ) − (1 − p)·log σ(−Δ), Δ = r_A − r_B, for the target p = P(A better): (sum, count) in nats.

    Its optimum is Δ* = logit p (section 4.1 of the paper with soft labels; p = 1 is the pairwise loss of 2204.05862).
    """
    chex.assert_rank([scores_a_B, scores_b_B, prob_a_B, mask_B], 1)
    chex.assert_type([scores_a_B, scores_b_B, prob_a_B], float)
    delta = (scores_a_B - scores_b_B).astype(jnp.float32)
    losses = -prob_a_B * jax.nn.log_sigmoid(delta) - (1.0 - prob_a_B) * jax.nn.log_sigmoid(-delta)
    return masked_sum(losses, mask_B)
