"""Policy-gradient algorithms: how rewards become advantages, and what the policy loses by them.

An algorithm is two pure functions and a flag; the learner (`training.learner`) runs any of them.
`settings` has the fields of the rl stage (`training.networks.Settings`). docs/methods.md says when
to use which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cai_jax.core import ppo

STD_EPSILON = 1e-4  # as TRL has it: a group whose rewards hardly differ is no signal


class Algorithm(NamedTuple):
    """`advantages(rewards, values, mask, groups, settings)` → {"advantages", and "returns" where
    there is a value model}, all [B, T]; `groups` int32 [B] numbers the prompt of each response.

    `policy_loss(logprobs, batch, settings)` → (losses [B, T], sums for the metrics); `batch` has
    the minibatch's "old" log-probabilities, "advantages", "actions" and "segments", all [B, T].

    `aggregation`: in place of `settings.loss_aggregation`, where the loss allows one only.
    """

    advantages: Callable
    policy_loss: Callable
    needs_value: bool
    aggregation: str = ""


# ---- Advantages ----------------------------------------------------------------------------------


def gae_advantages(rewards_BxT, values_BxT, mask_BxT, groups_B, settings) -> dict:
    """Generalised advantages, whitened over all rollouts, and the returns that values learn.

    Args:
      rewards_BxT: of every action, the KL penalty included.
      values_BxT: of the state that each action was chosen in.
      mask_BxT: the actions.
      groups_B: not used; every response has values of its own.
      settings: gamma and lam.
    Returns:
      {"returns", "advantages"}, [B, T].
    """
    advantages, returns = ppo.gae(rewards_BxT, values_BxT, mask_BxT, settings.gamma, settings.lam)
    return {"returns": returns, "advantages": ppo.whiten(advantages, mask_BxT)}


def _group_sum(x_B, groups_B):
    """For every response the sum over its group."""
    return jax.ops.segment_sum(x_B, groups_B, len(x_B))[groups_B]


def group_advantages(rewards_BxT, values_BxT, mask_BxT, groups_B, settings) -> dict:
    """GRPO (2402.03300): the reward of a response relative to those of the same prompt, the same
    number at each of its actions.

    Args:
      rewards_BxT: of every action; a response has their sum.
      values_BxT: None.
      mask_BxT: the actions.
      groups_B: the prompt of each response.
      settings: group_normalisation: mean_std (reward − mean) / std, mean without the division
        (2503.20783), none the reward itself.
    Returns:
      {"advantages"}, [B, T].
    """
    reward_B = jnp.sum(rewards_BxT, axis=1)
    count_B = _group_sum(jnp.ones_like(reward_B), groups_B)
    if settings.group_normalisation != "none":
        reward_B = reward_B - _group_sum(reward_B, groups_B) / count_B
    if settings.group_normalisation == "mean_std":
        squares_B = _group_sum(jnp.square(reward_B), groups_B)
        std_B = jnp.sqrt(squares_B / jnp.maximum(count_B - 1.0, 1.0))
        reward_B = reward_B / (std_B + STD_EPSILON)
    return {"advantages": jnp.where(mask_BxT, reward_B[:, None], 0.0)}


def leave_out_advantages(rewards_BxT, values_BxT, mask_BxT, groups_B, settings) -> dict:
    """RLOO (2402.14740): the reward of a response less the mean of the others to its prompt.

    Args:
      rewards_BxT, values_BxT, mask_BxT, groups_B: as in `group_advantages`.
      settings: not used.
    Returns:
      {"advantages"}, [B, T].
    """
    reward_B = jnp.sum(rewards_BxT, axis=1)
    others_B = _group_sum(jnp.ones_like(reward_B), groups_B) - 1.0
    baseline_B = (_group_sum(reward_B, groups_B) - reward_B) / jnp.maximum(others_B, 1.0)
    return {"advantages": jnp.where(mask_BxT, (reward_B - baseline_B)[:, None], 0.0)}


# ---- Losses --------------------------------------------------------------------------------------


def clipped_loss(logprobs_BxT, batch, settings):
    """PPO's clipped policy loss, with a ratio of probabilities for every action."""
    arrays = batch["old"], batch["advantages"], batch["actions"]
    return ppo.policy_loss(logprobs_BxT, *arrays, settings.clip)


def clipped_sequence_loss(logprobs_BxT, batch, settings):
    """The same with the ratio of responses: at every action the loss of its response."""
    arrays = batch["old"], batch["advantages"], batch["actions"]
    return ppo.policy_loss(logprobs_BxT, *arrays, settings.clip, batch["segments"])


PPO = Algorithm(gae_advantages, clipped_loss, needs_value=True)
GRPO = Algorithm(group_advantages, clipped_loss, needs_value=False)
RLOO = Algorithm(leave_out_advantages, clipped_sequence_loss, False, "sequence_mean")

ALGORITHMS = {"ppo": PPO, "grpo": GRPO, "rloo": RLOO}
