"""GRPO's and RLOO's arithmetic by hand, how losses are averaged, and which gradients estimates of
the KL have."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import ppo
from cai_jax.core.algorithms import ALGORITHMS

# Three answers to prompt 0 with rewards 1, 2, 6, two to prompt 1 with 5, 5; their rewards come in
# two actions each.
REWARDS = jnp.array([[0.5, 0.5], [2.0, 0.0], [5.0, 5.0], [3.0, 3.0], [2.0, 3.0]])
MASK = jnp.ones((5, 2), bool).at[1, 1].set(False)
GROUPS = jnp.array([0, 0, 1, 0, 1])


def advantages(name: str, **fields):
    settings = types.SimpleNamespace(**fields)
    rewards = REWARDS.at[2].set(jnp.array([2.0, 3.0]))
    make = jax.jit(lambda *arrays: ALGORITHMS[name].advantages(*arrays, settings))
    found = make(rewards, None, MASK, GROUPS)["advantages"]
    np.testing.assert_array_equal(found[~MASK], 0.0)
    assert all(row[mask].std() == 0 for row, mask in zip(found, MASK, strict=True))
    return np.asarray(found[:, 0])


@pytest.mark.parametrize(
    "normalisation,wanted",
    [
        ("none", [1, 2, 5, 6, 5]),
        ("mean", [-2, -1, 0, 3, 0]),
        ("mean_std", [-2 / np.sqrt(7), -1 / np.sqrt(7), 0, 3 / np.sqrt(7), 0]),
    ],
)
def test_an_answer_is_compared_with_its_group(normalisation, wanted):
    """(4 + 1 + 9) / 2 = 7 is the variance of the first group, 0 that of the second."""
    found = advantages("grpo", group_normalisation=normalisation)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_an_answer_is_compared_with_the_others_of_its_group():
    np.testing.assert_allclose(advantages("rloo"), [1 - 4, 2 - 3.5, 0, 6 - 1.5, 0], atol=1e-6)


def test_only_ppo_has_a_value_model():
    assert {name: found.needs_value for name, found in ALGORITHMS.items()} == {
        "ppo": True,
        "grpo": False,
        "rloo": False,
    }


# Two answers in the first row, of 1 and 3 actions after prompts of one token; one of 2 in the next.
SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0]])
ACTIONS = jnp.array([[False, True, False, True, True, True], [False, True, True] + [False] * 3])
LOSSES = jnp.array([[jnp.nan, 4.0, 9.0, 1.0, 2.0, 3.0], [9.0, 5.0, 7.0, 9.0, jnp.nan, 9.0]])


@pytest.mark.parametrize(
    "how,total,count",
    [("token_mean", 22, 6), ("sequence_mean", 4 + 2 + 6, 3), ("fixed_length", 22, 3 * 8)],
)
def test_losses_are_averaged(how, total, count):
    found = jax.jit(ppo.aggregate, static_argnums=(3, 4))(LOSSES, ACTIONS, SEGMENTS, how, 8)
    np.testing.assert_allclose(found, (total, count), rtol=1e-6)
    slope = jax.grad(lambda x: ppo.aggregate(x, ACTIONS, SEGMENTS, how, 8)[0])(LOSSES)
    assert np.all(np.asarray(slope)[~ACTIONS] == 0) and np.all(np.isfinite(slope))


def test_the_ratio_of_an_answer_is_the_product_of_its_tokens_ratios():
    """2 at the first answer's action; 1.1 at each of the second's three, 1.331 together, which is
    cut at 1.2; ½ and 2 cancel."""
    ratio = jnp.array([[9.0, 2.0, 9.0, 1.1, 1.1, 1.1], [9.0, 0.5, 2.0, 9.0, 9.0, 9.0]])
    batch = {"old": jnp.zeros((2, 6)), "actions": ACTIONS, "segments": SEGMENTS}
    batch["advantages"] = jnp.array(
        [[9.0, -1.0, 9.0, 1.0, 1.0, 1.0], [9.0, 3.0, 3.0, 9.0, 9.0, 9.0]]
    )
    settings = types.SimpleNamespace(clip=0.2)

    def total(logprobs):
        losses, _ = ALGORITHMS["rloo"].policy_loss(logprobs, batch, settings)
        how = ALGORITHMS["rloo"].aggregation
        return ppo.aggregate(losses, ACTIONS, SEGMENTS, how, 8)[0]

    np.testing.assert_allclose(total(jnp.log(ratio)), 2 - 1.2 - 3, rtol=1e-6)
    slope = jax.grad(total)(jnp.log(ratio))
    np.testing.assert_allclose(slope, [[0, 2, 0, 0, 0, 0], [0, -3, -3, 0, 0, 0]], rtol=1e-5)
    _, sums = ALGORITHMS["rloo"].policy_loss(jnp.log(ratio), batch, settings)
    assert float(sums["clipped"]) == 3 and float(sums["ratio_error"]) == 1.0


def test_gradients_of_the_kl():
    """Over all actions, weighted by their probability: k1 in the reward and k2 in the loss have the
    gradient of KL(π ‖ π_ref), k3 in the loss that of KL(π_ref ‖ π), k1 in the loss none."""
    logits, other = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    reference = jax.nn.log_softmax(other)
    weights = jax.nn.softmax(logits)  # of the samples, which are not differentiated

    def in_loss(x, estimator):
        arrays = jax.nn.log_softmax(x)[:, None], reference[:, None], jnp.ones((5, 1), bool)
        return jnp.sum(weights * ppo.kl_estimate(*arrays, estimator)[:, 0])

    def in_reward(x):
        kl = jax.nn.log_softmax(logits) - reference
        return jnp.sum(weights * kl * jax.nn.log_softmax(x))

    def kl(x, forward):
        p, q = (reference, jax.nn.log_softmax(x)) if forward else (jax.nn.log_softmax(x), reference)
        return jnp.sum(jnp.exp(p) * (p - q))

    exact, reverse = (jax.grad(kl)(logits, forward) for forward in (False, True))
    assert float(jnp.abs(exact - reverse).max()) > 0.01
    for found, wanted in (
        (jax.grad(in_reward)(logits), exact),
        (jax.grad(in_loss)(logits, "k2"), exact),
        (jax.grad(in_loss)(logits, "k3"), reverse),
        (jax.grad(in_loss)(logits, "k1"), np.zeros(5)),
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    for estimator in ("k1", "k3"):
        np.testing.assert_allclose(in_loss(logits, estimator), kl(logits, False), rtol=1e-5)
