"""Losses of direct preference optimisation: a policy from pairs, without a reward model.

DPO (Rafailov et al. 2023, 2305.18290) reads a reward from a policy, r = β·log(π / π_ref), and fits
it to the pairs as a preference model is fitted. IPO (Azar et al. 2023, 2310.12036) draws the
difference of the log-ratios to 1/(2β) instead, so that pairs without doubt do not draw it to ∞.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp

from cai_jax.core import losses


def smoothed(target_B, label_smoothing: float):
    """The target where a label is wrong with that probability (2305.18290's conservative DPO)."""
    return target_B * (1.0 - label_smoothing) + (1.0 - target_B) * label_smoothing


def pair_loss(
    logprobs_Bx2,
    reference_Bx2,
    lengths_Bx2,
    target_B,
    mask_B,
    *,
    kind: str = "sigmoid",
    beta: float = 0.1,
    nll_coefficient: float = 0.0,
):
    """The loss of pairs of answers.

    With h = log(π / π_ref) of the first answer less that of the second, and p the target:
    sigmoid: −p·log σ(βh) − (1 − p)·log σ(−βh), with its optimum at βh = logit p;
    ipo: p·(h − 1/(2β))² + (1 − p)·(h + 1/(2β))², the log-ratios divided by the answers' lengths.

    Args:
      logprobs_Bx2, reference_Bx2: of the answers, under policy and reference.
      lengths_Bx2: their tokens.
      target_B: P(the first is better).
      mask_B: which pairs count.
      kind: sigmoid or ipo.
      beta: how dear it is to leave the reference.
      nll_coefficient: weight of −log π by the token of the better answer (2404.19733).
    Returns:
      (sum, count).
    """
    chex.assert_rank([logprobs_Bx2, reference_Bx2, lengths_Bx2, target_B, mask_B], [2, 2, 2, 1, 1])
    lengths_Bx2 = jnp.maximum(lengths_Bx2, 1.0)
    ratios_Bx2 = logprobs_Bx2 - reference_Bx2
    if kind == "ipo":
        ratios_Bx2, aim = ratios_Bx2 / lengths_Bx2, 0.5 / beta
        gap_B = ratios_Bx2[:, 0] - ratios_Bx2[:, 1]
        squares_B = target_B * (gap_B - aim) ** 2 + (1.0 - target_B) * (gap_B + aim) ** 2
        total, count = losses.masked_sum(squares_B, mask_B)
    else:
        rewards_Bx2 = beta * ratios_Bx2
        total, count = losses.preference_loss(
            rewards_Bx2[:, 0], rewards_Bx2[:, 1], target_B, mask_B
        )
    better_Bx2 = 0.5 + 0.5 * jnp.sign(jnp.stack([target_B - 0.5, 0.5 - target_B], axis=1))
    nll_B = -jnp.sum(better_Bx2 * logprobs_Bx2 / lengths_Bx2, axis=1)
    return total + nll_coefficient * losses.masked_sum(nll_B, mask_B)[0], count


def pair_sums(logprobs_Bx2, reference_Bx2, lengths_Bx2, target_B, mask_B, beta: float) -> dict:
    """What is logged, summed over the pairs.

    Args:
      logprobs_Bx2, reference_Bx2, lengths_Bx2, target_B, mask_B, beta: as in `pair_loss`, the
        target without smoothing.
    Returns:
      accuracy (the better answer has the higher reward β·log(π / π_ref); ties of rewards or labels
      count a half), margin (of these rewards; 0 where neither answer is
      better), and log-probability and length of the better and the other answer.
    """
    second_B = target_B < 0.5
    order_Bx2 = jnp.stack([second_B, ~second_B], axis=1).astype(jnp.int32)
    columns = (logprobs_Bx2 - reference_Bx2, logprobs_Bx2, lengths_Bx2)
    ratios, logprobs, lengths = (jnp.take_along_axis(x, order_Bx2, axis=1) for x in columns)
    margin_B = jnp.where(target_B == 0.5, 0.0, beta * (ratios[:, 0] - ratios[:, 1]))
    means = {
        "accuracy": 0.5 + 0.5 * jnp.sign(margin_B),
        "margin": margin_B,
        "chosen_logprob": logprobs[:, 0],
        "rejected_logprob": logprobs[:, 1],
        "chosen_tokens": lengths[:, 0],
        "rejected_tokens": lengths[:, 1],
    }
    return {name: losses.masked_sum(values, mask_B)[0] for name, values in means.items()}
