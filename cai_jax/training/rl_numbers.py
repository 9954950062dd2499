"""What is logged of an update of reinforcement learning, on its rollouts and minibatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cai_jax.core import ppo
from cai_jax.training.rollouts import Rollouts

AVERAGED = ("loss", "value_loss")  # sums that are divided by the count of their own minibatch


def of_rollouts(batch: Rollouts, frozen: Mapping, reward, cut, coefficient: float) -> dict:
    """Numbers on an update's rollouts before they are learned from.

    Args:
      batch: the responses, with the scores that are learned from.
      frozen: what the learner froze of them, [R, T] each.
      reward: their scores without the penalty for a missing end, [R].
      cut: whether each was cut at the limit of tokens, [R].
      coefficient: of the KL penalty.
    Returns:
      Means over responses by name; over tokens are entropy, sampler_kl, correction, value and
      return; maxima are max_token_kl, sampler_gap and correction_max. KL and entropy in nats.
    """
    actions, count = batch.actions, batch.actions.sum()
    kl, k3 = (np.asarray(x) for x in ppo.sequence_kl(frozen["old"], frozen["ref"], actions))
    numbers = {
        "reward": reward.mean(),
        "reward_std": reward.std(),
        "penalised_reward": batch.scores.mean(),
        "objective": batch.scores.mean() - coefficient * kl.mean(),
        "kl": kl.mean(),
        "kl_k3": k3.mean(),
        "max_token_kl": np.abs(frozen["old"] - frozen["ref"]).max(),
        "kl_coefficient": coefficient,
        "entropy": frozen["entropy"].sum() / count,
        "response_tokens": actions.sum(axis=1).mean(),
        "truncated": cut.mean(),
        "sampler_gap": np.abs(np.where(actions, batch.sampled - frozen["old"], 0.0)).max(),
        "sampler_kl": np.where(actions, batch.sampled - frozen["old"], 0.0).sum() / count,
        "tokens": batch.mask.sum(),
    }
    if "weights" in frozen:  # of a correction: at 1, or at the cap where many are
        weights = frozen["weights"][actions]
        numbers |= {"correction": weights.mean(), "correction_max": weights.max()}
    if "values" in frozen:
        explained = ppo.explained_variance(frozen["values"], frozen["returns"], actions)
        numbers |= {
            "explained_variance": float(explained),
            "value": frozen["values"].sum() / count,
            "return": frozen["returns"].sum() / count,
        }
    return numbers


def of_minibatches(history: Sequence[Mapping]) -> dict:
    """Numbers on the minibatches of an update: losses and norms averaged over them, shares over all
    actions, of errors the first and the largest."""
    columns = {name: np.array([float(numbers[name]) for numbers in history]) for name in history[0]}
    counts, actions, numbers = columns.pop("count"), columns.pop("actions"), {}
    for name, values in columns.items():
        if name in AVERAGED:
            numbers[name] = (values / np.maximum(counts, 1.0)).mean()
        elif name.endswith("grad_norm"):
            numbers[name] = values.mean()
        elif name.endswith("_error"):
            numbers[f"first_{name}"], numbers[f"max_{name}"] = values[0], values.max()
        else:
            numbers[SHARES.get(name, name)] = values.sum() / actions.sum()
    return numbers


SHARES = {"clipped": "clip_fraction", "value_clipped": "value_clip_fraction"}


STILL_CLIPPED, STILL_KL = 0.002, 0.1  # what less than is no movement: a share, nats a response
FEWEST_WATCHED = 4  # updates, after the warm-up


def not_learning(updates: Sequence[Mapping]) -> str:
    """What says that a policy is not learning, by the metrics of its updates after the warm-up: it
    hardly moves, and its reward rises by less than the standard error between the first and the
    second half of them. "" where one of the three says otherwise, or there are too few."""
    clipped, kl, reward = (
        np.array([float(update[name]) for update in updates])
        for name in ("clip_fraction", "kl", "reward")
    )
    half = len(updates) // 2
    if len(updates) < FEWEST_WATCHED:
        return ""
    first, last = reward[:half], reward[half:]
    error = np.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last))
    if clipped.mean() >= STILL_CLIPPED or kl[-1] >= STILL_KL or last.mean() > first.mean() + error:
        return ""
    return (
        f"nothing seems to be learned in {len(updates)} updates: "
        f"clip fraction {clipped.mean():.3f}, KL {kl[-1]:.3f} nats, "
        f"reward {first.mean():.3f} → {last.mean():.3f}; a higher learning_rate, more epochs or a "
        "lower kl_coefficient make it move"
    )
