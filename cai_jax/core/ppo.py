"""The arithmetic of policy gradients for language models: rewards, advantages, clipped losses and
how they are averaged, the KL controller. Pure functions.

Every token array is [B, T] over all of the sequence (prompt, response, padding) and comes with a
mask [B, T] that is True on the actions: the response's sampled tokens, EOS included. Entry t speaks
of token t: its log-probability given the tokens before it, and the value of the state in which it
was chosen. Losses are one an action, [B, T], which `aggregate` makes (sum, count). What is off the
mask never matters, not even NaN: it is set to 0 before any arithmetic, so that gradients are clean.
Sources: Schulman et al. 2017 (1707.06347), 2016 (1506.02438); Ziegler et al. 2019 (1909.08593); Bai
et al. 2022 (2204.05862), whose settings the paper reuses: γ = 1, ε = 0.2, λ_KL = 0.001.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from cai_jax.core.losses import masked_sum, sequence_sum


def _clean(mask_BxT, *arrays):
    """The arrays with 0 off the mask, after the checks. Float by force: int32 rewards turn 0.7 into
    0 silently."""
    chex.assert_rank([mask_BxT, *arrays], 2)
    chex.assert_equal_shape([mask_BxT, *arrays])
    chex.assert_type(mask_BxT, bool)
    chex.assert_type(list(arrays), float)
    return tuple(jnp.where(mask_BxT, array, 0.0) for array in arrays)


def last_true(mask_BxT):
    """True at the last True of each row, nowhere in a row without one. Bool [B, T]."""
    remaining = jnp.cumsum(mask_BxT[:, ::-1], axis=1)[:, ::-1]
    return mask_BxT & (remaining == 1)


def kl_estimate(logprobs_BxT, ref_logprobs_BxT, mask_BxT, estimator: str = "k1"):
    """An estimate of KL(π ‖ π_ref) at every action from d = log π − log π_ref.

    k1 = d; k2 = d²/2; k3 = exp(−d) − 1 + d (Schulman 2020, "Approximating KL divergence"). Where
    actions come from π, k1 and k3 have the KL as their mean. As a part of the reward k1 gives its
    gradient. Differentiated in the loss, k1 has gradients of mean 0, k2 those of the KL, and k3
    those of KL(π_ref ‖ π).

    Args:
      logprobs_BxT, ref_logprobs_BxT, mask_BxT: of the actions.
      estimator: k1, k2 or k3.
    Returns:
      float [B, T], 0 off the mask.
    """
    logprobs_BxT, ref_logprobs_BxT = _clean(mask_BxT, logprobs_BxT, ref_logprobs_BxT)
    difference_BxT = logprobs_BxT - ref_logprobs_BxT
    if estimator == "k1":
        return difference_BxT
    if estimator == "k2":
        return 0.5 * jnp.square(difference_BxT)
    return jnp.expm1(-difference_BxT) + difference_BxT


def token_rewards(
    scores_B, logprobs_BxT, ref_logprobs_BxT, mask_BxT, kl_coefficient, estimator: str = "k1"
):
    """Score of a response on its last token, minus β·KL on every action, as `kl_estimate` estimates
    it. Float [B, T].

    With k1 the sum over a row is the objective of section 4.3 (from 2204): r(x, y) − β·log(π(y|x) /
    π_ref(y|x)).

    Args:
      scores_B: of the responses.
      logprobs_BxT, ref_logprobs_BxT: of policy and reference.
      mask_BxT: the actions.
      kl_coefficient: β.
      estimator: of `kl_estimate`.
    Returns:
      float [B, T], 0 off the mask.
    """
    kl_BxT = kl_estimate(logprobs_BxT, ref_logprobs_BxT, mask_BxT, estimator)
    chex.assert_rank(scores_B, 1)
    chex.assert_type(scores_B, float)
    return -kl_coefficient * kl_BxT + jnp.where(last_true(mask_BxT), scores_B[:, None], 0.0)


def gae(rewards_BxT, values_BxT, mask_BxT, gamma: float, lam: float):
    """Generalised advantage estimation.

    δ_t = r_t + γ·V_next − V_t,  A_t = δ_t + γλ·A_next,  return = A + V, where "next" is the next
    *action* of the row: masked positions carry the recursion through unchanged. After the last
    action the value is 0 (the episode is over, also where the response was cut at its length
    limit). Returns are of the values given, before any whitening.

    Args:
      rewards_BxT, values_BxT: of every action, and of the state that it was chosen in.
      mask_BxT: the actions.
      gamma, lam: γ and λ.
    Returns:
      (advantages, returns), float [B, T], 0 off the mask.
    """
    rewards_BxT, values_BxT = _clean(mask_BxT, rewards_BxT, values_BxT)

    def step(carry, inputs):
        advantage_B, value_B = carry
        reward_B, this_B, mask_B = inputs
        new_B = reward_B + gamma * value_B - this_B + gamma * lam * advantage_B
        carry = jnp.where(mask_B, new_B, advantage_B), jnp.where(mask_B, this_B, value_B)
        return carry, jnp.where(mask_B, new_B, 0.0)

    zeros_B = jnp.zeros_like(values_BxT[:, 0])
    columns = (rewards_BxT.T, values_BxT.T, mask_BxT.T)
    _, advantages_TxB = jax.lax.scan(step, (zeros_B, zeros_B), columns, reverse=True)
    advantages_BxT = advantages_TxB.T
    return advantages_BxT, advantages_BxT + values_BxT


def masked_mean(values_BxT, mask_BxT):
    total, count = masked_sum(values_BxT, mask_BxT)
    return total / jnp.maximum(count, 1.0)


def masked_variance(values_BxT, mask_BxT):
    """Population variance of the values under the mask."""
    return masked_mean(jnp.square(values_BxT - masked_mean(values_BxT, mask_BxT)), mask_BxT)


def whiten(values_BxT, mask_BxT, epsilon: float = 1e-8, shift: bool = True):
    """(x − mean) / sqrt(variance + ε) under the mask, 0 elsewhere. Meant for all rollouts of an
    update, not for a minibatch.

    Args:
      values_BxT, mask_BxT: numbers, and which of them count.
      epsilon: ε.
      shift: False only scales, which is what rewards need: their mean is part of the objective.
    Returns:
      float [B, T].
    """
    (values_BxT,) = _clean(mask_BxT, values_BxT)
    scale = jax.lax.rsqrt(masked_variance(values_BxT, mask_BxT) + epsilon)
    mean = masked_mean(values_BxT, mask_BxT) if shift else 0.0
    return jnp.where(mask_BxT, (values_BxT - mean) * scale, 0.0)


def aggregate(losses_BxT, mask_BxT, segments_BxT, how: str, length: int):
    """(sum, count) of the losses of all actions; sum / count is what a step descends.

    token_mean: Σ loss / tokens. A token has the same weight in a short response and in a long one.
    sequence_mean: the mean over each response, then over responses (2402.03300). Tokens of long
      responses weigh less: a bad response is punished less the longer it is, a good one rewarded
      more the shorter it is.
    fixed_length: Σ loss / (responses · length) (2503.20783). As token_mean, but the size of a step
      does not depend on how long the responses of a minibatch happen to be.

    Args:
      losses_BxT, mask_BxT: of the actions.
      segments_BxT: int32, which sequence of its row a token belongs to.
      how: one of the three.
      length: of fixed_length, the most tokens that a response may have.
    Returns:
      (sum, count), float32 scalars.
    """
    total, count = masked_sum(losses_BxT, mask_BxT)
    if how == "token_mean":
        return total, count
    lengths_BxT = sequence_sum(mask_BxT.astype(jnp.float32), segments_BxT)
    share_BxT = jnp.where(mask_BxT, 1.0 / jnp.maximum(lengths_BxT, 1.0), 0.0)
    num_sequences = jnp.sum(share_BxT)
    if how == "sequence_mean":
        return masked_sum(losses_BxT * share_BxT, mask_BxT)[0], num_sequences
    return total, length * num_sequences


def policy_loss(
    logprobs_BxT, old_logprobs_BxT, advantages_BxT, mask_BxT, clip: float, segments_BxT=None
):
    """−min(ρA, clip(ρ, 1 ± ε)A) of every action, [B, T], and sums over actions for the log.

    The sums: `clipped` (actions whose gradient the clip cuts off), `old_kl` (k3 estimate of
    KL(π_old ‖ π)), and `ratio_error` = max |π/π_old − 1|, which is 0 in the first minibatch after
    sampling if sampler and learner agree.

    Args:
      logprobs_BxT, old_logprobs_BxT: of the actions, under the policy now and when they were
        sampled.
      advantages_BxT, mask_BxT: of the actions.
      clip: ε.
      segments_BxT: where given, ρ is the ratio of responses, the product of π/π_old over a
        sequence; otherwise that of the action.
    Returns:
      (losses, sums).
    """
    arrays = _clean(mask_BxT, logprobs_BxT, old_logprobs_BxT, advantages_BxT)
    logprobs_BxT, old_logprobs_BxT, advantages_BxT = arrays
    log_ratio_BxT = logprobs_BxT - old_logprobs_BxT
    ratio_BxT = jnp.exp(log_ratio_BxT)
    sums = {
        "old_kl": masked_sum(ratio_BxT - 1.0 - log_ratio_BxT, mask_BxT)[0],
        "ratio_error": jnp.max(jnp.abs(ratio_BxT - 1.0)),
    }
    if segments_BxT is not None:
        ratio_BxT = jnp.exp(sequence_sum(log_ratio_BxT, segments_BxT))
    free_BxT = -advantages_BxT * ratio_BxT
    cut_BxT = -advantages_BxT * jnp.clip(ratio_BxT, 1.0 - clip, 1.0 + clip)
    sums["clipped"] = jnp.sum((cut_BxT > free_BxT) & mask_BxT, dtype=jnp.float32)
    return jnp.where(mask_BxT, jnp.maximum(free_BxT, cut_BxT), 0.0), sums


def value_loss(values_BxT, old_values_BxT, returns_BxT, mask_BxT, clip: float | None):
    """½·max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²) of every action.

    Args:
      values_BxT, old_values_BxT, returns_BxT: V, V_old and R.
      mask_BxT: the actions.
      clip: ε; None for no clipping.
    Returns:
      (losses [B, T], {clipped}).
    """
    values_BxT, old_values_BxT, returns_BxT = _clean(
        mask_BxT, values_BxT, old_values_BxT, returns_BxT
    )
    free_BxT = jnp.square(values_BxT - returns_BxT)
    if clip is None:
        cut_BxT = free_BxT
    else:
        # min and max rather than old + clip(V − old): inside the range this is V itself, without a
        # rounding error.
        near_BxT = jnp.clip(values_BxT, old_values_BxT - clip, old_values_BxT + clip)
        cut_BxT = jnp.square(near_BxT - returns_BxT)
    clipped = jnp.sum((cut_BxT > free_BxT) & mask_BxT, dtype=jnp.float32)
    return 0.5 * jnp.maximum(free_BxT, cut_BxT), {"clipped": clipped}


def sequence_kl(logprobs_BxT, ref_logprobs_BxT, mask_BxT):
    """Two estimates of KL(π ‖ π_ref) of a response, nats, float [B]: k1 = Σ log ratio, k3 = Σ
    (r − 1 − log r)."""
    arrays = logprobs_BxT, ref_logprobs_BxT, mask_BxT
    return tuple(jnp.sum(kl_estimate(*arrays, name), axis=1) for name in ("k1", "k3"))


def explained_variance(values_BxT, returns_BxT, mask_BxT):
    """1 − Var(R − V) / Var(R) under the mask; 0 where the returns do not vary."""
    values_BxT, returns_BxT = _clean(mask_BxT, values_BxT, returns_BxT)
    variance = masked_variance(returns_BxT, mask_BxT)
    residual = masked_variance(returns_BxT - values_BxT, mask_BxT)
    return jnp.where(variance > 0.0, 1.0 - residual / jnp.where(variance > 0.0, variance, 1.0), 0.0)


def adapt_kl_coefficient(
    coefficient: float, kl: float, target: float | None, horizon: float, num_rollouts: int
):
    """The proportional controller of 1909.08593 (section 2.2): β ← β·(1 + clip(KL/target − 1,
    ±0.2)·n/horizon).

    Args:
      coefficient: β.
      kl: the mean KL of a response in nats.
      target: of that; None leaves β fixed (the paper).
      horizon, num_rollouts: counts of rollouts, n those of the update.
    Returns:
      The next β.
    """
    if target is None:
        return coefficient
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * num_rollouts / horizon)


def importance_weights(logprobs_BxT, sampled_BxT, mask_BxT, how: str, cap: float):
    """π / π_sampler of every action, at most `cap`: with them a mean over what a sampler of rounded
    weights drew is one over what the policy would have drawn (truncated importance sampling,
    Ionides 2008).

    Args:
      logprobs_BxT, sampled_BxT: of the actions, under the policy and the sampler.
      mask_BxT: the actions.
      how: "token", the ratio of the action alone: little noise, and a gradient that the response's
        other actions bias away from the optimum; or "sequence", that of the complete response,
        exact up to the cap and noisy in long ones.
      cap: the largest weight.
    Returns:
      float [B, T], 0 off the mask.
    """
    logprobs_BxT, sampled_BxT = _clean(mask_BxT, logprobs_BxT, sampled_BxT)
    log_ratio_BxT = logprobs_BxT - sampled_BxT
    if how == "sequence":
        log_ratio_BxT = jnp.sum(log_ratio_BxT, axis=1, keepdims=True)
    weights_BxT = jnp.exp(jnp.minimum(log_ratio_BxT, jnp.log(cap)))
    return jnp.where(mask_BxT, weights_BxT, 0.0)
