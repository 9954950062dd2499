"""Policy-gradient algorithms: how rewards become advantages, and what the policy loses by them.

An algorithm is two pure functions and a flag; the learner (`training.learner`) runs any of them.
`settings` has the fields of the rl stage (`training.networks.Settings`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cai_jax.core import ppo


class Algorithm(NamedTuple):
    """`advantages(rewards, values, mask, groups, settings)` → {"advantages", and "returns" where
    there is a value model}, all [B, T]; `groups` int32 [B] numbers the prompt of each response.

    `policy_loss(logprobs, old, advantages, mask, settings)` → (sum, count, sums for the metrics).
    """

    advantages: Callable
    policy_loss: Callable
    needs_value: bool


def gae_advantages(rewards_BxT, values_BxT, mask_BxT, groups_B, settings) -> dict:
    """Generalised advantages, whitened over all rollouts, and the returns that values learn.

    Args:
      rewards_BxT: of every action, the KL penalty included.
      values_BxT: of the state that each action was chosen in.
      mask_BxT: the actions.
      groups_B: not used; every response has values of its own.
      settings: gamma and lam.
    """
    advantages, returns = ppo.gae(rewards_BxT, values_BxT, mask_BxT, settings.gamma, settings.lam)
    return {"returns": returns, "advantages": ppo.whiten(advantages, mask_BxT)}


def clipped_loss(logprobs_BxT, old_BxT, advantages_BxT, mask_BxT, settings):
    """PPO's clipped policy loss; see `ppo.policy_loss`.

    Args:
      logprobs_BxT, old_BxT: of the actions, under the policy now and when they were sampled.
      advantages_BxT: of the actions.
      mask_BxT: the actions.
      settings: clip.
    """
    return ppo.policy_loss(logprobs_BxT, old_BxT, advantages_BxT, mask_BxT, settings.clip)


PPO = Algorithm(gae_advantages, clipped_loss, needs_value=True)

ALGORITHMS = {"ppo": PPO}
